"""What pretrained optimizers are meta-trained on."""

import functools
import json
from importlib import resources

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


@functools.cache
def train_broad() -> Suite:
    """All distributions with VeLO's augmentations, drawn once.

    `scripts/draw_suite.py` drew them, and a file keeps them: another version of NumPy
    or another machine's costs would draw others.
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
