"""The interface of meta-gradient estimators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from .._mesh import PARTICLES


class Info(NamedTuple):
    """What an estimate tells about itself; scalars, to be logged by the caller.

    Attributes:
      meta_loss: mean objective over steps, particles and signs.
      inner_steps: that count, of all runs, int32.
      episodes: inner training runs, or pairs of them, that ended, int32.
      nonfinite: particles that were left out because theirs was not finite, int32.
      particles: all of them, int32.
    """

    meta_loss: jax.Array
    inner_steps: jax.Array
    episodes: jax.Array
    nonfinite: jax.Array
    particles: jax.Array


class MetaGradient(NamedTuple):
    """An estimator of d meta-loss / d theta: two pure functions.

    Attributes:
      init: `(key, theta) -> state`, the worker's state (inner runs in progress).
      estimate: `(key, theta, state, data, step) -> (gradient, state, Info)`; `data` is
        the problem's, `step` the outer step (int32), for schedules that follow it. The
        gradient has theta's structure. A particle (a run, or an antithetic pair) whose
        numbers are not finite is left out and counted in `Info`, never repaired
        silently; if all are, the gradient is zero.
      specs: prefix tree of the state: how it lies on a mesh with an axis "particles".
        By default every leaf leads with that axis.
    """

    init: Callable[[jax.Array, Any], Any]
    estimate: Callable[
        [jax.Array, Any, Any, Any, jax.Array | int], tuple[Any, Any, Info]
    ]
    specs: Any = PartitionSpec(PARTICLES)
