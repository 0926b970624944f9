"""Trains tasks with a learned optimizer beside Adam with a swept learning rate."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.tasks import Split, TaskFamily, resolve

from ._config import Evaluation
from ._speedup import best_learning_rate
from ._unroll import inner_init, unroll

CURVE_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Learning curves of one task; arrays are (seeds, points) of mean loss.

    A point is the loss on fixed batches of a split, at steps 0, eval_every, ...
    """

    task: str
    steps: np.ndarray  # (points,): inner steps made at each point
    learned: dict[str, np.ndarray]  # split -> (seeds, points)
    adam: dict[str, np.ndarray]  # at the best learning rate of the grid
    adam_learning_rate: float
    adam_grid: dict[float, float]  # learning rate -> mean final train loss


def evaluate(
    tx: optax.GradientTransformation,
    config: Evaluation,
    *,
    families: Sequence[TaskFamily] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TaskResult]:
    """Learning curves of a bound optimizer and of LR-swept Adam.

    Both see the same tasks, initialisations and batches, seed by seed. Adam's learning
    rate is the best of the grid for these very runs (an advantage for Adam).

    Args:
      tx: the optimizer, theta bound; `value` is handed to it.
      config: tasks, steps, seeds, grid.
      families: in place of `config.tasks`: your own.
      on_progress: called with (runs finished, runs in all).

    Example:
      >>> import l2o
      >>> from l2o.meta_train import Evaluation, evaluate
      >>> tx = l2o.learnable_sgd().bind({"log_lr": -1.0})
      >>> config = Evaluation(tasks=("quadratic10",), steps=20, seeds=2)
      >>> (result,) = evaluate(tx, config)
      >>> result.learned["train"].shape
      (2, 3)
    """
    learned = optax.with_extra_args_support(tx)
    if families is None:
        families = [spec.family() for spec in resolve(config.tasks).values()]
    rates = jnp.asarray(config.learning_rates)

    def adam(rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(optax.adam(rate))

    def job(family: TaskFamily, baseline: bool) -> dict[str, np.ndarray]:
        if baseline:
            return _curves(adam, rates, family, config)
        return _curves(lambda _: learned, jnp.zeros(1), family, config)

    jobs = [(family, baseline) for family in families for baseline in (False, True)]
    done = 0
    on_progress(done, len(jobs))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(job, *each) for each in jobs]
        curves = []
        for future in futures:
            curves.append(future.result())
            done += 1
            on_progress(done, len(jobs))

    steps = np.arange(0, config.steps + 1, config.eval_every)
    results = []
    for i, family in enumerate(families):
        mine, grid = curves[2 * i], curves[2 * i + 1]
        best, finals = best_learning_rate(grid["train"])
        results.append(
            TaskResult(
                task=family.name,
                steps=steps,
                learned={split: x[0] for split, x in mine.items()},
                adam={split: x[best] for split, x in grid.items()},
                adam_learning_rate=config.learning_rates[best],
                adam_grid=dict(zip(config.learning_rates, finals, strict=True)),
            )
        )
    return results


def _curves(
    make_tx: Callable[[jax.Array], optax.GradientTransformationExtraArgs],
    hypers: jax.Array,
    family: TaskFamily,
    config: Evaluation,
) -> dict[str, np.ndarray]:
    """split -> (hypers, seeds, points)."""
    points = config.steps // config.eval_every

    def one(run: tuple[jax.Array, jax.Array], data: Any) -> dict[Split, jax.Array]:
        hyper, seed = run
        return learning_curve(
            make_tx(hyper),
            family,
            data,
            jax.random.key(seed),
            steps=config.steps,
            eval_every=config.eval_every,
            eval_batches=config.eval_batches,
            splits=CURVE_SPLITS,
        )

    @jax.jit
    def all_runs(hypers: jax.Array, data: Any) -> dict[Split, jax.Array]:
        seeds = jnp.arange(config.seeds)
        runs = (jnp.repeat(hypers, len(seeds)), jnp.tile(seeds, len(hypers)))
        # One after the other: small models gain nothing from vmap on a CPU, and the
        # threads of `evaluate` already keep the cores busy.
        curves = jax.lax.map(lambda run: one(run, data), runs)
        shape = (len(hypers), config.seeds, points + 1)
        return {split: x.reshape(shape) for split, x in curves.items()}

    return {k: np.asarray(v) for k, v in all_runs(hypers, family.data).items()}


def learning_curve(
    tx: optax.GradientTransformationExtraArgs,
    family: TaskFamily,
    data: Any,
    key: jax.Array,
    *,
    steps: int,
    eval_every: int,
    eval_batches: int,
    splits: Sequence[Split],
    normalized: bool = False,
) -> dict[Split, jax.Array]:
    """One run on a task that `key` draws: split -> (1 + steps / eval_every,) losses.

    With `normalized`, as the task's meta-loss is.
    """
    k_config, k_init, k_steps, k_eval = jax.random.split(key, 4)
    task = family.task(family.sample(k_config), data)
    state = inner_init(tx, task, k_init)

    def probe(state: Any, split: Split) -> jax.Array:
        def loss(key: jax.Array) -> jax.Array:
            k_batch, k_loss = jax.random.split(key)
            batch = task.batch(k_batch, split)
            value = task.loss(state.params, state.model_state, k_loss, batch)[0]
            return task.normalize(value) if normalized else value

        return jnp.mean(jax.lax.map(loss, jax.random.split(k_eval, eval_batches)))

    def window(state: Any, steps: jax.Array) -> tuple[Any, dict[Split, jax.Array]]:
        state, _ = unroll(tx, task, state, k_steps, steps)
        return state, {split: probe(state, split) for split in splits}

    start = {split: probe(state, split) for split in splits}
    windows = jnp.arange(steps).reshape(-1, eval_every)
    _, rest = jax.lax.scan(window, state, windows)
    return {
        split: jnp.concatenate([start[split][None], rest[split]]) for split in splits
    }


def save_results(
    path: Path, results: Sequence[TaskResult], config: Evaluation, meta: dict[str, Any]
) -> None:
    """Writes an evaluation as JSON; non-finite losses become null."""

    def plain(x: Any) -> Any:
        if isinstance(x, dict):
            return {str(k): plain(v) for k, v in x.items()}
        if isinstance(x, list | tuple):
            return [plain(v) for v in x]
        if isinstance(x, np.ndarray):
            return plain(x.tolist())
        if isinstance(x, float):
            return float(f"{x:.6g}") if np.isfinite(x) else None
        return x

    content = {
        "evaluation": dataclasses.asdict(config),
        **meta,
        "results": [dataclasses.asdict(result) for result in results],
    }
    path.write_text(json.dumps(plain(content)) + "\n")
