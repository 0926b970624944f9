"""Inner training: one run of an optimizer on a task, as a scan."""

from typing import Any, NamedTuple

import jax
import optax

from l2o.tasks import Split, Task


class InnerState(NamedTuple):
    """What changes while a task is trained."""

    params: Any
    opt_state: Any
    model_state: Any


def inner_init(
    tx: optax.GradientTransformationExtraArgs, task: Task, key: jax.Array
) -> InnerState:
    """A fresh model and optimizer state."""
    params, model_state = task.init(key)
    return InnerState(params, tx.init(params), model_state)


def inner_step(
    tx: optax.GradientTransformationExtraArgs,
    task: Task,
    state: InnerState,
    key: jax.Array,
    split: Split = "train",
) -> tuple[InnerState, jax.Array]:
    """One update; returns the batch's loss *before* it.

    Args:
      tx: any optax transformation that takes extra arguments.
      task: the inner problem.
      state: from `inner_init`.
      key: of this step; draws the batch and seeds the loss.
      split: where the batch comes from.
    """
    k_batch, k_loss = jax.random.split(key)
    batch = task.batch(k_batch, split)

    def loss_fn(params):
        return task.loss(params, state.model_state, k_loss, batch)

    (loss, (model_state, _)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    return InnerState(params, opt_state, model_state), loss


def unroll(
    tx: optax.GradientTransformationExtraArgs,
    task: Task,
    state: InnerState,
    key: jax.Array,
    steps: jax.Array,
) -> tuple[InnerState, jax.Array]:
    """Trains for `len(steps)` steps.

    Args:
      tx, task, state: as in `inner_step`.
      key: of the whole run; step t uses `fold_in(key, t)`, so that a run cut into
        windows draws what an uncut one draws.
      steps: shape (K,), consecutive step numbers t.

    Returns:
      The state after the last step and the K losses, each before its update.
    """

    def body(state, t):
        return inner_step(tx, task, state, jax.random.fold_in(key, t))

    return jax.lax.scan(body, state, steps)
