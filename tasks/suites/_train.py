"""What pretrained optimizers are meta-trained on."""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from .._distributions import TRAIN_IMAGES
from .._spec import TaskSpec
from ._base import Suite, labelled

TRAIN_FAST = Suite(
    "train/fast",
    1,
    "four MLPs with one hidden layer of 32, 8x8 images (Celo's recipe, offline data)",
    labelled(
        {
            f"mlp32-{name}": TaskSpec(
                "supervised",
                {
                    "model": "mlp",
                    "datasets": (name,),
                    "options": {"hidden": (32,)},
                    "initializer": "truncated_normal",
                },
            )
            for name in TRAIN_IMAGES
        }
    ),
    steps=2000,
    split="outer_valid",
)


_DRAWN = {"initializer": "normal", "init_scale": (0.5, 2.0)}
_ACTIVATIONS = ("relu", "tanh", "gelu")


def _images(
    model: str, options: Mapping[str, Any], batch_size: int = 32, **more: Any
) -> TaskSpec:
    return TaskSpec(
        "supervised",
        {
            "model": model,
            "datasets": TRAIN_IMAGES,
            "data": {"size": 8},
            "options": dict(options),
            "batch_size": batch_size,
            "activation": _ACTIVATIONS,
            **_DRAWN,
            **more,
        },
    )


def _code(model: str, **options: Any) -> TaskSpec:
    return TaskSpec(
        "language_model",
        {
            "model": model,
            "options": options,
            "datasets": ("python_code",),
            "length": 8,
            "batch_size": 16,
        },
    )


def _photograph(model: str, hidden: tuple[int, ...]) -> TaskSpec:
    return TaskSpec(
        "coordinate_network",
        {"image": "flower", "model": model, "hidden": hidden, "batch_size": 64},
    )


# An inner step of the dearest takes thirty times that of the cheapest.
TRAIN_MIXED = Suite(
    "train/mixed",
    1,
    "sixteen kinds of small models, each as wide as it must be to learn something",
    labelled(
        {
            "mixed-mlp": _images("mlp", {"hidden": (32,)}, 64),
            "mixed-mlp-deep": _images("mlp", {"hidden": (24, 24, 24)}),
            "mixed-mlp-layernorm": _images(
                "mlp", {"hidden": (32, 32), "normalization": "layer"}
            ),
            "mixed-conv": _images("conv", {"channels": (8, 16)}),
            "mixed-conv-layernorm": _images(
                "conv", {"channels": (8, 8, 8), "normalization": "layer"}
            ),
            "mixed-vit": _images(
                "vit", {"patch": 4, "width": 16, "heads": 2, "layers": 1, "mlp": 32}
            ),
            "mixed-mixer": _images(
                "mixer",
                {
                    "patch": 4,
                    "width": 16,
                    "token_mlp": 16,
                    "channel_mlp": 32,
                    "layers": 1,
                },
            ),
            "mixed-autoencoder": TaskSpec(
                "autoencoder",
                {
                    "datasets": TRAIN_IMAGES,
                    "hidden": (32, 8, 32),
                    "image_size": 8,
                    "batch_size": 32,
                    "activation": _ACTIVATIONS,
                    **_DRAWN,
                },
            ),
            "mixed-vae": TaskSpec(
                "vae",
                {
                    "datasets": TRAIN_IMAGES,
                    "encoder": (32,),
                    "decoder": (32,),
                    "latent": 4,
                    "image_size": 8,
                    "batch_size": 32,
                    **_DRAWN,
                },
            ),
            "mixed-gru": _code("recurrent", core="gru", size=24, embedding=16),
            "mixed-lstm": _code("recurrent", core="lstm", size=24, embedding=16),
            "mixed-transformer": _code("transformer", width=16, heads=2, layers=2),
            "mixed-siren": _photograph("siren", (32, 32)),
            "mixed-fourier": _photograph("fourier", (32,)),
            "mixed-table": TaskSpec(
                "supervised",
                {
                    "model": "mlp",
                    "datasets": ("breast_cancer",),
                    "options": {"hidden": (16, 16)},
                    "batch_size": 16,
                    "activation": _ACTIVATIONS,
                    **_DRAWN,
                },
            ),
            "mixed-least-squares": TaskSpec(
                "least_squares", {"rows": 64, "dim": 16, "log10_condition": 2.0}
            ),
        }
    ),
    split="outer_valid",
)


@functools.cache
def train_broad() -> Suite:
    """All distributions with VeLO's augmentations, drawn once.

    `scripts/recipes/draw_suite.py` drew them, and a file keeps them: another version of
    NumPy or another machine's costs would draw others.
    """
    file = resources.files(__package__) / "train_broad.json"
    content = json.loads(file.read_text())
    return Suite(
        "train/broad",
        content["version"],
        "families of every kind, sampled with VeLO's ranges and augmentations",
        {
            name: TaskSpec.from_dict(spec, check=False)
            for name, spec in content["tasks"].items()
        },
        seed=content["seed"],
        steps=1000,
        split="outer_valid",
        augmented=True,
    )
