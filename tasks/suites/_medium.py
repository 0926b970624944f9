"""Models of the sizes that people begin with, on data that nothing is trained on."""

from typing import Any

from .._spec import TaskSpec
from ._base import Suite, labelled

_TEXT = {"datasets": ("python_library",)}


def _language(model: str, **options: Any) -> TaskSpec:
    return TaskSpec("language_model", {"model": model, **_TEXT, **options})


def _images(model: str, dataset: str, **options: Any) -> TaskSpec:
    return TaskSpec(
        "supervised",
        {
            "model": model,
            "datasets": (dataset,),
            "data": {"size": 24},
            "batch_size": 32,
            **options,
        },
    )


# An inner step takes 3 to 40 milliseconds on one core. No run sees its training data
# three times. The largest model, on which updates are timed, is a GPT.
HELDOUT_MEDIUM = Suite(
    "heldout/medium",
    1,
    "seven models of 0.6 to 0.8 million parameters on data that no training suite has",
    labelled(
        {
            "gpt-library": _language(
                "gpt",
                options={"width": 96, "heads": 4, "layers": 4},
                vocabulary=2048,
                length=32,
                batch_size=8,
            ),
            "gpt-stacked-library": _language(
                "gpt",
                options={"width": 96, "heads": 4, "layers": 5, "stacked": True},
                length=32,
                batch_size=8,
            ),
            "gru-library": _language(
                "recurrent",
                options={
                    "core": "gru", "size": 256, "embedding": 128, "head": "lm_head"
                },
                vocabulary=1024,
                length=32,
                batch_size=8,
            ),
            "vit-fonts": _images(
                "vit",
                "fonts",
                options={
                    "patch": 6, "width": 96, "heads": 4, "layers": 5, "mlp": 384,
                    "head": "head",
                },
                activation="gelu",
                batch_size=16,
            ),
            "resnet-characters": _images(
                "haiku_resnet",
                "characters",
                options={"stem": 5, "stem_stride": 2, "channels": (16, 32, 96, 192)},
            ),
            "diffusion-characters": TaskSpec(
                "diffusion",
                {
                    "datasets": ("characters",),
                    "channels": (8, 32, 112),
                    "image_size": 16,
                    "batch_size": 16,
                },
            ),
            "skip-gram-library": TaskSpec(
                "skip_gram",
                {
                    **_TEXT, "width": 64, "vocabulary": 6144, "length": 5,
                    "batch_size": 256,
                },
            ),
        }
    ),
    heldout="tasks and data",
)  # fmt: skip
