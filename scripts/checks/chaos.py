"""Gradients are not all you need, on two inner dynamics whose exponents are known.

The inner state is that of the logistic map x' = r x (1 - x), theta is r, the loss is x.
Its Lyapunov exponent is about -0.92 at r = 3.2 and about +0.49 at r = 3.9.

    python scripts/checks/chaos.py
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import l2o
from l2o.meta_train import Bilevel, Diagnosis, diagnose, learn_optimizer
from l2o.tasks import TaskFamily, stateless

_ESTIMATORS = ("backprop", "full_es", "pes", "nres", "truncated_backprop")


def logistic() -> Bilevel:
    """theta = r; an episode starts at x uniform between 0.2 and 0.8."""

    def bind(r, *, num_steps=None):
        def update(gradients, state, x, **extra):
            return r * x * (1 - x) - x, state

        return optax.GradientTransformationExtraArgs(lambda x: (), update)

    task = stateless(
        init=lambda key: jax.random.uniform(key, minval=0.2, maxval=0.8),
        batch=lambda key, split: (),
        loss=lambda x, key, batch: x,
    )
    family = TaskFamily(lambda key: (), lambda config, data: task)
    return learn_optimizer(
        l2o.LearnedOptimizer(lambda key: jnp.float32(3.9), bind), family
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=4096)
    options = parser.parse_args()
    config = Diagnosis(
        lengths=(5, 10, 20, 40, 80),
        truncation=5,
        particles=options.particles,
        std=0.01,
        runs=32,
        points=5,
    )
    console = Console(width=110)
    for r in (3.2, 3.9):
        findings = diagnose(logistic(), jnp.float32(r), config)
        exponent, error = findings.dynamics.exponent
        table = Table(
            "variance at T =",
            *map(str, config.lengths),
            title=f"logistic map, r = {r}: exponent {exponent:+.3f} ± {error:.3f}, "
            f"n = {options.particles}",
        )
        for name in _ESTIMATORS:
            cells = [c for c in findings.cells if c.estimator == name]
            table.add_row(name, *(f"{c.variance:.2g}" for c in cells))
        console.print(table)
        console.print(findings.recommendation.sentence, highlight=False)


if __name__ == "__main__":
    main()
