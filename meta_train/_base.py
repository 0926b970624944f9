"""The interface of meta-gradient estimators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Info(NamedTuple):
    """What an estimate tells about itself; scalars, to be logged by the caller."""

    meta_loss: jax.Array  # mean normalised inner loss over steps, particles and signs
    inner_steps: jax.Array  # int32: inner steps that count, both signs
    episodes: jax.Array  # int32: inner training runs (pairs) that ended
    nonfinite: jax.Array  # int32: pairs left out, their loss difference not finite


class MetaGradient(NamedTuple):
    """An estimator of d meta-loss / d theta: two pure functions.

    Attributes:
      init: `(key, theta) -> state`, the worker's state (inner runs in progress).
      estimate: `(key, theta, state, data) -> (gradient, state, Info)`; `data` is the
        task family's. The gradient has theta's structure. A pair of runs whose losses
        are not finite is left out and counted in `Info`, never repaired silently.
    """

    init: Callable[[jax.Array, Any], Any]
    estimate: Callable[[jax.Array, Any, Any, Any], tuple[Any, Any, Info]]
