"""Inner training: one run of an optimizer on a task, as a scan."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.tasks import Split, Task

from .._mesh import on_batch
from ._objective import Objective, evaluate_objective, select
from ._remat import checkpointed_scan

_FRESH = 1  # folded into a step's key: draws of the objective, apart from training's


def value_only(loss_fn: Callable, loss: jax.Array, grads: Any) -> dict[str, Any]:
    del loss_fn, grads
    return {"value": loss}


class InnerState(NamedTuple):
    """What changes while a task is trained."""

    params: Any
    opt_state: Any
    model_state: Any


def inner_init(
    tx: optax.GradientTransformationExtraArgs, task: Task, key: jax.Array
) -> InnerState:
    """A fresh model and optimizer state.

    Args:
      tx: a bound learned optimizer, or any of optax.
      task: whose parameters are drawn.
      key: for that.
    """
    params, model_state = task.init(key)
    return InnerState(params, tx.init(params), model_state)


def inner_step(
    tx: optax.GradientTransformationExtraArgs,
    task: Task,
    state: InnerState,
    key: jax.Array,
    split: Split = "train",
    *,
    second_derivatives: bool = True,
    extra: Callable[[Callable, jax.Array, Any], dict[str, Any]] = value_only,
) -> tuple[InnerState, jax.Array, dict[str, Any]]:
    """One update; returns the batch's loss and aux *before* it.

    Args:
      tx: any optax transformation that takes extra arguments.
      task: the inner problem.
      state: from `inner_init`.
      key: of this step; draws the batch and seeds the loss.
      split: where the batch comes from.
      second_derivatives: False takes the gradient for a constant when this step is
        differentiated (cheaper, biased).
      extra: `(params -> loss, loss, gradient) -> ` extra arguments of `tx.update`; the
        loss as `value` by default.
    """
    k_batch, k_loss = jax.random.split(key)
    batch = on_batch(task.batch(k_batch, split))

    def loss_fn(params):
        return task.loss(params, state.model_state, k_loss, batch)

    (loss, (model_state, aux)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    if not second_derivatives:
        grads = jax.lax.stop_gradient(grads)
    more = extra(lambda params: loss_fn(params)[0], loss, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, **more)
    params = optax.apply_updates(state.params, updates)
    return InnerState(params, opt_state, model_state), loss, aux


def unroll(
    tx: optax.GradientTransformationExtraArgs,
    task: Task,
    state: InnerState,
    key: jax.Array,
    steps: jax.Array,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    *,
    length: jax.Array | None = None,
    levels: int = 0,
    second_derivatives: bool = True,
) -> tuple[InnerState, jax.Array]:
    """Trains for `len(steps)` steps.

    Args:
      tx, task, state: as in `inner_step`.
      key: of the whole run; step t uses `fold_in(key, t)`, so that a run cut into
        windows draws what an uncut one draws.
      steps: shape (K,), consecutive step numbers t.
      objective: what is measured; the training loss before each update by default.
      length: steps from this number on are not made, and measure 0. None makes all.
        With a number that is not vmapped they cost nothing.
      levels: of checkpointing when differentiated in reverse, see `checkpointed_scan`.
      second_derivatives: as in `inner_step`.

    Returns:
      The state after the last step and the K measurements, before `normalize`. Of an
      objective that is evaluated at the end, all are 0 but for `measure_end`'s.
    """
    measures = objective.split is not None and not objective.at_end

    def step(state, t):
        k_step = jax.random.fold_in(key, t)
        state, loss, aux = inner_step(
            tx, task, state, k_step, second_derivatives=second_derivatives
        )
        if measures:
            k_fresh = jax.random.fold_in(k_step, _FRESH)
            value = evaluate_objective(
                objective, task, state.params, state.model_state, k_fresh
            )
        elif objective.at_end:
            value = jnp.zeros_like(loss)
        else:
            value = select(objective, loss, aux)
        return state, value

    body: Callable = step
    if length is not None:

        def body(state, t):
            def skip(state, t):
                shape = jax.eval_shape(step, state, t)[1]
                return state, jnp.zeros(shape.shape, shape.dtype)

            return jax.lax.cond(t < length, step, skip, state, t)

    return checkpointed_scan(body, state, steps, levels)


def measure_end(
    task: Task,
    state: InnerState,
    key: jax.Array,
    step: jax.Array,
    objective: Objective,
) -> jax.Array:
    """An objective at the end of a window whose last step is `step`."""
    k_fresh = jax.random.fold_in(jax.random.fold_in(key, step), _FRESH)
    return evaluate_objective(objective, task, state.params, state.model_state, k_fresh)
