"""One task of the fast recipe, changed along one axis at a time."""

from typing import Any

from .._spec import Augmentation, TaskSpec
from ._base import Suite, labelled


def _mlp(
    *hidden: int, dataset: str = "digits", augment: tuple = (), **options: Any
) -> TaskSpec:
    content = {
        "model": "mlp",
        "datasets": (dataset,),
        "options": {"hidden": hidden or (32,)},
        "initializer": "truncated_normal",
        **options,
    }
    return TaskSpec("supervised", content, tuple(Augmentation(*a) for a in augment))


def _reparametrized(level: str, factor: float) -> TaskSpec:
    options = {"level": level, "scale_range": (1 / factor, factor)}
    return _mlp(augment=(("reparametrize", options),))


AXES = Suite(
    "axes",
    1,
    "an MLP of the fast recipe, wider, deeper, on other data, rescaled, with NaNs",
    labelled(
        {
            "axis-none": _mlp(),
            "axis-width-4x": _mlp(128),
            "axis-width-16x": _mlp(512),
            "axis-depth-4x": _mlp(32, 32, 32, 32),
            "axis-parameters-100x": _mlp(400, 400),
            "axis-batch-8": _mlp(batch_size=8),
            "axis-batch-128": _mlp(batch_size=128),
            "axis-data-glyphs": _mlp(dataset="glyphs", data={"size": 12}),
            "axis-tanh": _mlp(activation="tanh"),
            "axis-reparam-tensor-10": _reparametrized("tensor", 10.0),
            "axis-reparam-tensor-100": _reparametrized("tensor", 100.0),
            "axis-reparam-global-1000": _reparametrized("global", 1000.0),
            "axis-loss-1e4": _mlp(augment=(("scaled_loss", {"factor": 1e4}),)),
            "axis-loss-1e-4": _mlp(augment=(("scaled_loss", {"factor": 1e-4}),)),
            "axis-noise": _mlp(augment=(("gradient_noise", {"std": 1.0}),)),
            "axis-bfloat16": _mlp(augment=(("reduced_precision", {}),)),
            "axis-nan": _mlp(augment=(("nan_gradient", {"probability": 0.003}),)),
        }
    ),
)
