"""Small tasks for training whose tensors have the layouts that `train/mixed` lacks."""

from typing import Any

from .._distributions import TRAIN_IMAGES
from .._spec import TaskSpec
from ._base import Suite, labelled


def _images(model: str, **more: Any) -> TaskSpec:
    return TaskSpec(
        "supervised",
        {
            "model": model,
            "datasets": TRAIN_IMAGES,
            "data": {"size": 8},
            "batch_size": 32,
            "activation": ("relu", "tanh", "gelu"),
            "init_scale": (0.5, 2.0),
            **more,
        },
    )


def _code(model: str, vocabulary: int | None = None, **options: Any) -> TaskSpec:
    content = {
        "model": model,
        "options": options,
        "datasets": ("python_code",),
        "length": 8,
        "batch_size": 16,
    }
    if vocabulary is not None:
        content["vocabulary"] = vocabulary
    return TaskSpec("language_model", content)


TRAIN_LAYOUTS = Suite(
    "train/layouts",
    1,
    "tables with Zipf's frequencies, stacked layers, fused qkv, other layouts",
    labelled(
        {
            "layouts-lookup": TaskSpec("zipf_table", {"rows": 2000}),
            "layouts-ratings": TaskSpec(
                "zipf_table", {"readout": "dot", "rows": 2000, "batch_size": 128}
            ),
            "layouts-pieces": _code("decoder", 1024, layers=1),
            "layouts-tied": _code("decoder", 2000, layers=1, tied=True),
            "layouts-stacked": _code("decoder", layers=3, stacked=True),
            "layouts-qkv": _code("decoder", fused=True),
            "layouts-heads": _code("decoder", width=32, heads=4, layers=1),
            "layouts-depthwise": _images("depthwise", initializer="normal"),
            "layouts-out-in": _images("out_in"),
            "layouts-experts": _images("experts"),
        }
    ),
    split="outer_valid",
)
