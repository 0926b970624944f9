"""Learning curves of one run."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from l2o.tasks import Split, TaskFamily

from ..estimators._unroll import inner_init, inner_step, value_only

Curves = dict[Split, dict[str, jax.Array]]


def learning_curve(
    tx: Any,
    family: TaskFamily,
    data: Any,
    key: jax.Array,
    *,
    steps: int,
    eval_every: int,
    eval_batches: int,
    splits: Sequence[Split],
    normalized: bool = False,
    extra: Callable[..., dict[str, Any]] = value_only,
    final: Callable[[Any, Any], Any] | None = None,
) -> Curves:
    """One run on a task that `key` draws.

    Args:
      tx: an optax transformation that takes extra arguments.
      family, data: where the task is from.
      key: of the task, the initial parameters, the batches.
      steps: of training; a multiple of `eval_every`.
      eval_every: steps between two points of the curves, the first before any.
      eval_batches: fixed batches behind every point.
      splits: where these are from.
      normalized: whether the loss is as the meta-loss is.
      extra: see `inner_step`.
      final: `(optimizer's state, params) -> params`, what is evaluated; by default the
        parameters as they are.

    Returns:
      split -> metric -> shape (1 + steps / eval_every,); the metrics are "loss" and the
      task's own.
    """
    k_config, k_init, k_steps, k_eval = jax.random.split(key, 4)
    task = family.task(family.sample(k_config), data)

    def point(state: Any, split: Split) -> dict[str, jax.Array]:
        params = state.params if final is None else final(state.opt_state, state.params)

        def metrics(key: jax.Array) -> dict[str, jax.Array]:
            k_batch, k_loss = jax.random.split(key)
            batch = task.batch(k_batch, split)
            loss, (_, aux) = task.loss(params, state.model_state, k_loss, batch)
            return {**aux, "loss": task.normalize(loss) if normalized else loss}

        each = jax.lax.map(metrics, jax.random.split(k_eval, eval_batches))
        return jax.tree.map(jnp.mean, each)

    def step(state: Any, t: jax.Array) -> tuple[Any, None]:
        k_step = jax.random.fold_in(k_steps, t)
        return inner_step(tx, task, state, k_step, extra=extra)[0], None

    def window(state: Any, steps: jax.Array) -> tuple[Any, Curves]:
        state, _ = jax.lax.scan(step, state, steps)
        return state, {split: point(state, split) for split in splits}

    state = inner_init(tx, task, k_init)
    start = {split: point(state, split) for split in splits}
    _, rest = jax.lax.scan(window, state, jnp.arange(steps).reshape(-1, eval_every))
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), start, rest)
