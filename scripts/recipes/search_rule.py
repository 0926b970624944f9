"""Variants of an orthogonalised rule that is not meta-trained, on `train/mixed`.

    python scripts/recipes/search_rule.py FILE.json
    python scripts/recipes/search_rule.py FILE.json --families mixed-mlp mixed-vae

Each is `celo2_base` with steps relative to the parameters, Newton-Schulz iterations and
a cosine; what differs is the mixture of Adam's direction and the gradient's that they
are given, the decay (0.06) of the weights, of the momentum and the second moment, and
the rate (0.03), also of vectors alone. `normalized_orthogonal` was chosen by it. All
tasks of the suite, four seeds, final losses on two splits: a quarter of an hour on two
cores.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from scipy import stats

import l2o
from l2o.meta_train.cli import configure_process
from l2o.meta_train.evaluation import learning_curve
from l2o.rule import FEATURES, feature_sizes, warmup_cosine
from l2o.tasks import TaskFamily, TaskSpec, held_out, task_specs

SUITE, STEPS, SEEDS, POINTS = "train/mixed", 1000, 4, 3
SPLITS = ("train", "outer_valid")


class Numbers(NamedTuple):
    """What of a variant may be traced: one program serves all that differ by it."""

    momentum: Any = 1.0  # shares of the normalised m_norm and g_norm
    gradient: Any = 0.0
    decay: Any = 0.0  # of matrices and what has more axes
    decay_vectors: Any = 0.0
    rate: Any = 0.03
    vectors: Any = 1.0  # factor of their steps


class Variant(NamedTuple):
    numbers: Numbers
    options: Mapping[str, Any] = {}


_EVEN = Numbers(0.6, 0.6, 0.06, 0.06)
VARIANTS = {
    "adam": Variant(Numbers()),
    "adam, decay 0.06": Variant(Numbers(1.0, 0.0, 0.06, 0.06)),
    "0.8 + 0.3": Variant(_EVEN._replace(momentum=0.8, gradient=0.3)),
    "0.6 + 0.6": Variant(_EVEN),
    "0.45 + 0.8": Variant(_EVEN._replace(momentum=0.45, gradient=0.8)),
    "0.3 + 1": Variant(_EVEN._replace(momentum=0.3, gradient=1.0)),
    "0.6 + 0.6, no decay": Variant(Numbers(0.6, 0.6)),
    "0.6 + 0.6, decay 0.03": Variant(Numbers(0.6, 0.6, 0.03, 0.03)),
    "0.6 + 0.6, decay 0.1": Variant(Numbers(0.6, 0.6, 0.1, 0.1)),
    "0.6 + 0.6, not of vectors": Variant(_EVEN._replace(decay_vectors=0.0)),
    "0.6 + 0.6, vectors / 2": Variant(_EVEN._replace(vectors=0.5)),
    "0.6 + 0.6, vectors x 2": Variant(_EVEN._replace(vectors=2.0)),
    "0.6 + 0.6, rate 0.02": Variant(_EVEN._replace(rate=0.02)),
    "0.6 + 0.6, rate 0.045": Variant(_EVEN._replace(rate=0.045)),
    "0.6 + 0.6, momentum 0.8": Variant(_EVEN, {"momentum_decays": (0.8, 0.99, 0.999)}),
    "0.6 + 0.6, rms 0.99": Variant(_EVEN, {"rms_decays": (0.99,)}),
}


def rule(options: Mapping[str, Any]) -> l2o.LearnedOptimizer:
    """At rate one: its steps are proportional to it."""
    return l2o.celo2_base(
        init="nadam",
        relative=True,
        schedule="cosine",
        learning_rate=1.0,
        orthogonalize=True,
        **options,
    )


def transformation(
    options: Mapping[str, Any], numbers: Numbers
) -> optax.GradientTransformationExtraArgs:
    optimizer = rule(options)
    nn = optimizer.init_theta(jax.random.key(0))["nn"]
    sizes = feature_sizes(FEATURES, 3, 1, 3)
    for name, share in (("m_norm", numbers.momentum), ("g_norm", numbers.gradient)):
        plane = sum(sizes[: FEATURES.index(name)])
        w0 = nn["w0"].at[plane, :2].set(share * jnp.array([1.0, -1.0]))
        nn = {**nn, "w0": w0}
    base = optimizer.bind({"nn": nn}, num_steps=STEPS)

    def update(updates, state, params=None, **extra_args):
        cosine = warmup_cosine(state.count, STEPS)
        updates, state = base.update(updates, state, params, **extra_args)

        def scaled(step, param):
            if step.ndim < 2:
                step, decay = step * numbers.vectors, numbers.decay_vectors
            else:
                decay = numbers.decay
            return numbers.rate * (step - decay * cosine * param)

        return jax.tree.map(scaled, updates, params), state

    return optax.GradientTransformationExtraArgs(base.init, update)


def losses(family: TaskFamily) -> np.ndarray:
    """(variants, seeds, splits)."""
    alike: dict[str, list[int]] = {}
    for i, variant in enumerate(VARIANTS.values()):
        alike.setdefault(json.dumps(variant.options), []).append(i)
    found = np.empty((len(VARIANTS), SEEDS, len(SPLITS)))
    for key, members in alike.items():
        found[members] = _ends(family, json.loads(key), members)
    return found


def _ends(
    family: TaskFamily, options: Mapping[str, Any], members: Sequence[int]
) -> np.ndarray:
    chosen = [list(VARIANTS.values())[i].numbers for i in members]
    return final_losses(
        family,
        lambda numbers: transformation(options, numbers),
        Numbers(*map(jnp.array, zip(*chosen, strict=True))),
        jax.random.split(jax.random.key(77), SEEDS),
        steps=STEPS,
    )


def final_losses(
    family: TaskFamily,
    transformation: Callable[[Any], optax.GradientTransformationExtraArgs],
    numbers: Any,
    keys: jax.Array,
    *,
    steps: int,
    eval_batches: int = 8,
) -> np.ndarray:
    """Shape (variants, keys, splits), one after the other in one compiled program.

    Args:
      family: of the task.
      transformation: from the numbers of one variant, which are traced.
      numbers: a tree whose leaves have an axis of variants.
      keys: of the runs.
    """

    @jax.jit
    def run(numbers, data):
        def one(given):
            numbers, key = given
            curves = learning_curve(
                transformation(numbers),
                family,
                data,
                key,
                steps=steps,
                eval_every=steps // 20,
                eval_batches=eval_batches,
                splits=SPLITS,
            )
            ends = [jnp.mean(curves[split]["loss"][-POINTS:]) for split in SPLITS]
            return jnp.stack(ends)

        return jax.lax.map(
            lambda x: jax.lax.map(lambda key: one((x, key)), keys), numbers
        )

    return np.asarray(run(numbers, family.data))


def on_every_task(
    specs: Mapping[str, TaskSpec], losses: Callable[[TaskFamily], np.ndarray]
) -> dict[str, np.ndarray]:
    """What `losses` finds, two tasks at a time.

    Raises:
      ValueError: a task that optimizers are judged by.
    """
    for name, spec in specs.items():
        if why := held_out(spec):
            raise ValueError(f"{name} is {why}: choose on tasks for training")

    def finished(name):
        found = losses(specs[name].family())
        Console().print(name, highlight=False)
        return found

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(specs, pool.map(finished, specs), strict=True))


def print_ranks(variants: Sequence[str], found: Mapping[str, np.ndarray]) -> None:
    """Mean ranks over tasks; `found` has losses of shape (variants, seeds, splits)."""
    every = np.stack(list(found.values()))  # (families, variants, seeds, splits)
    means = np.mean(np.where(np.isfinite(every), every, np.inf), 2)
    ranks = np.mean(stats.rankdata(means, axis=1), 0)
    count = every.shape[2]
    title = f"mean rank over {len(found)} tasks, means of n = {count} seeds"
    table = Table("variant", *SPLITS, "both", title=title, box=None)
    for i in np.argsort(ranks.mean(1)):
        cells = [*ranks[i], ranks[i].mean()]
        table.add_row(variants[i], *(f"{x:.2f}" for x in cells))
    Console().print(table)


def print_better(variants: Sequence[str], found: Mapping[str, np.ndarray]) -> None:
    """On how many tasks each is better than the first, in the mean over seeds."""
    ends = np.stack([np.mean(x, 1) for x in found.values()])
    for i, name in enumerate(variants):
        counts = np.sum(ends[:, i] < ends[:, 0], 0)
        better = ", ".join(f"{k} on {s}" for k, s in zip(counts, SPLITS, strict=True))
        print(f"{name}: of {len(found)} tasks better than the first: {better}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file for all losses")
    parser.add_argument("--families", nargs="+", default=[SUITE])
    options = parser.parse_args()
    configure_process()
    found = on_every_task(task_specs(tuple(options.families)), losses)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {name: x.tolist() for name, x in found.items()}
    options.out.write_text(json.dumps({"variants": list(VARIANTS), "losses": content}))
    print_ranks(list(VARIANTS), found)


if __name__ == "__main__":
    main()
