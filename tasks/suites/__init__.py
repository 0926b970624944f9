"""Suites: named, versioned lists of tasks, each with a seed, a budget and a metric."""

import functools

from ._axes import AXES
from ._base import Suite
from ._convex import CONVEX
from ._demo import DEMO_HELDOUT, DEMO_TRAIN
from ._heldout import HELDOUT_SMALL
from ._layouts import TRAIN_LAYOUTS
from ._medium import HELDOUT_MEDIUM
from ._train import TRAIN_FAST, TRAIN_MIXED, train_broad
from ._velodrome import VELODROME


@functools.cache
def suites() -> dict[str, Suite]:
    """All suites by name."""
    every = (
        DEMO_TRAIN,
        DEMO_HELDOUT,
        TRAIN_FAST,
        TRAIN_MIXED,
        TRAIN_LAYOUTS,
        train_broad(),
        HELDOUT_SMALL,
        HELDOUT_MEDIUM,
        AXES,
        VELODROME,
        CONVEX,
    )
    return {suite.name: suite for suite in every}


__all__ = ["Suite", "suites"]
