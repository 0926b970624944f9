"""What `make demo` meta-trains on and is judged by."""

from .._spec import TaskSpec
from ._base import Suite, labelled


def _mlp(*hidden: int) -> TaskSpec:
    return TaskSpec("image_mlp", {"datasets": ("digits", "patches"), "hidden": hidden})


DEMO_TRAIN = Suite(
    "demo/train",
    1,
    "MLPs on digits and photo patches, and a quadratic",
    labelled(
        {
            "quadratic10": TaskSpec("quadratic"),
            "mlp16": _mlp(16),
            "mlp32": _mlp(32),
            "mlp64": _mlp(64),
            "mlp32x32": _mlp(32, 32),
        }
    ),
    steps=500,
    split="outer_valid",
)

DEMO_HELDOUT = Suite(
    "demo/heldout",
    1,
    "four kinds of models that the demo does not meta-train on",
    labelled(
        {
            "deep_mlp": TaskSpec(
                "supervised",
                {
                    "model": "mlp",
                    "datasets": ("digits",),
                    "options": {"hidden": (64, 64, 64)},
                },
            ),
            "conv": TaskSpec("supervised", {"model": "conv", "datasets": ("digits",)}),
            "autoencoder": TaskSpec("autoencoder"),
            "transformer_lm": TaskSpec("language_model"),
        }
    ),
    steps=500,
    heldout="tasks",
)
