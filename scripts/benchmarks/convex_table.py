"""Adam, ISTA and FISTA on the LASSO of L2O-PA: relative error by iteration.

python scripts/benchmarks/convex_table.py
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from l2o.tasks import fista, ista, lasso, lasso_problem, relative_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=250)
    parser.add_argument("--dim", type=int, default=500)
    parser.add_argument("--nonzeros", type=int, default=50)
    parser.add_argument("--instances", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100, 1000])
    options = parser.parse_args()
    family = lasso(options.rows, options.dim, options.nonzeros)
    steps = jnp.asarray(options.steps)

    @jax.jit
    def errors(key):
        config = family.sample(key)
        problem = lasso_problem(**config)
        start, best = jnp.zeros(options.dim), family.optimum(config, ())
        arguments = (jax.grad(problem.smooth), problem.prox, problem.lipschitz, start)
        points = {
            "ISTA": lambda n: ista(*arguments, n),
            "FISTA": lambda n: fista(*arguments, n),
            "Adam, lr 1e-2": lambda n: _adam(problem.value, start, n),
            "Adam, lr 1e-2, b .1/.1": lambda n: _adam(
                problem.value, start, n, b1=0.1, b2=0.1
            ),
        }

        def error(point, n):
            return relative_error(problem.value(point(n)), best)

        return {
            name: jnp.stack([error(point, n) for n in steps])
            for name, point in points.items()
        }

    keys = jax.random.split(jax.random.key(0), options.instances)
    found = [errors(key) for key in keys]
    table = Table(
        *("method", *(f"{n} iterations" for n in options.steps)),
        title=f"LASSO {options.rows}x{options.dim}: (F - F*) / F*, mean (smallest to "
        f"largest) of n = {options.instances} instances",
    )
    for name in found[0]:
        columns = np.array([row[name] for row in found]).T
        cells = [f"{c.mean():.1e} ({c.min():.1e} to {c.max():.1e})" for c in columns]
        table.add_row(name, *cells)
    Console(width=120).print(table)


def _adam(value, start, steps, **betas):
    tx = optax.adam(1e-2, **betas)

    def step(_, carry):
        x, state = carry
        updates, state = tx.update(jax.grad(value)(x), state)
        return optax.apply_updates(x, updates), state

    return jax.lax.fori_loop(0, steps, step, (start, tx.init(start)))[0]


if __name__ == "__main__":
    main()
