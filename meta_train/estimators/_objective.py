"""Meta-objectives: which number of an inner run is made small."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from l2o.names import check_known
from l2o.tasks import SPLITS, Split, Task

from .._mesh import on_batch

Over = Literal["mean", "late", "last", "min", "telescoping"]


class Objective(NamedTuple):
    """What is measured of an inner run, and how a run's measurements become one number.

    The default is the mean over steps of the training loss before each update, which
    costs nothing. With a `split` the new parameters are evaluated on fresh batches
    instead: after every step for "mean", "late" and "min", else once at the end of the
    window.

    Attributes:
      split: where fresh batches come from; None for the training loss itself.
      metric: name of an entry of the loss function's `aux`; None for the loss.
      over: "mean" of the steps; "late", the mean with weights that grow linearly from
        0 at the start to 2 at the end; "last", the end of the run; "min", the best step
        (full unrolls only); "telescoping", the same number as "last" written as the sum
        of the changes from window to window, so that every window has a signal.
      samples: fresh batches per evaluation, of which the mean is taken.
      normalize: applied to every measurement. None is the task's own `normalize` for a
        loss, nothing for a metric; `l2o.tasks.clipped(maximum)` is a common choice.

    Example:
      >>> from l2o.meta_train import Objective
      >>> validation = Objective(split="inner_valid")
      >>> velo = Objective(split="train", over="last", samples=100)
    """

    split: Split | None = None
    metric: str | None = None
    over: Over = "mean"
    samples: int = 1
    normalize: Callable[[jax.Array], jax.Array] | None = None

    @property
    def at_end(self) -> bool:
        """Whether it is evaluated at the end of a window only."""
        return self.split is not None and self.over in ("last", "telescoping")


def check_objective(objective: Objective, *, windows: bool) -> None:
    """Raises `ValueError` for what cannot be; `windows` where unrolls are truncated."""
    if objective.split is not None:
        check_known("split", objective.split, SPLITS)
    check_known("Objective.over", objective.over, get_args(Over))
    if objective.samples < 1:
        raise ValueError(f"Objective.samples must be >= 1, not {objective.samples}")
    if objective.samples > 1 and objective.split is None:
        raise ValueError("Objective.samples needs a split to draw fresh batches from")
    if windows and objective.over == "min":
        raise ValueError(
            "the minimum over an episode is not a sum over windows: use an estimator "
            "of full unrolls (full_es, backprop)"
        )


def select(objective: Objective, loss: jax.Array, aux: dict[str, Any]) -> jax.Array:
    """The objective's entry of what a loss function returned."""
    if objective.metric is None:
        return loss
    if objective.metric not in aux:
        known = ", ".join(aux) or "none"
        raise ValueError(
            f"the task has no metric {objective.metric!r} in its aux; known: {known}"
        )
    return aux[objective.metric]


def weighted(
    objective: Objective, values: jax.Array, steps: jax.Array, length: jax.Array
) -> jax.Array:
    """`values` of steps as their mean over a run counts them: zero past its end.

    Weights of "late" are `2 (t + 1/2) / length`, those of "mean" one; both have mean
    one.

    Args:
      values: shape (..., K).
      steps: int32, broadcasts to it.
      length: of the run, broadcasts to it.
    """
    if objective.over == "late":
        values = values * ((2 * steps + 1) / length)
    return jnp.where(steps < length, values, 0.0)


def normalized(objective: Objective, task: Task, values: jax.Array) -> jax.Array:
    """`values` (K,) as they count in the meta-objective."""
    normalize = objective.normalize
    if normalize is None:
        if objective.metric is not None:
            return values
        normalize = task.normalize
    return jax.vmap(normalize)(values)


def evaluate_objective(
    objective: Objective, task: Task, params: Any, model_state: Any, key: jax.Array
) -> jax.Array:
    """Mean over fresh batches of the split, not normalized."""
    split = objective.split
    assert split is not None

    def one(key):
        k_batch, k_loss = jax.random.split(key)
        batch = on_batch(task.batch(k_batch, split))
        loss, (_, aux) = task.loss(params, model_state, k_loss, batch)
        return select(objective, loss, aux)

    if objective.samples == 1:
        return one(key)
    return jnp.mean(jax.lax.map(one, jax.random.split(key, objective.samples)))
