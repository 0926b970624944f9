"""The problems of L2O-Scale with random data."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily
from ._lasso import lasso_problem
from ._variants import (
    EPS,
    Objective,
    Variant,
    check_variant,
    variant_minimum,
    variant_name,
    variant_task,
)

_EXAMPLES = 1000  # in a dataset of those that have one


class _Kind(NamedTuple):
    """How a problem is drawn, and what it is; functions of (config, dim, power)."""

    sample: Callable[[jax.Array, int], Any]
    loss: Callable[[Any, int, float, jax.Array, Any], jax.Array]
    scale: Callable[[Any, int, float], Any]
    minimum: Callable[[Any, int, float], Any] | None
    floor: Callable[[Any, int, float], Any] | None = None  # where no minimum is known
    examples: bool = False


def l2o_scale(
    name: str = "quadratic",
    dim: int = 20,
    *,
    power: float = 2.0,
    batch_size: int = 100,
    rescale: float = 1.0,
    log: bool = False,
    sparse: float = 0.0,
) -> TaskFamily:
    """A problem of L2O-Scale with its own random matrix or data, from x(0) ~ N(0, 1).

    ====================== ============================================================
    "quadratic"            `||W x - y||^2 / 2`
    "lasso"                `||W x - y||^2 / 2 + ||x||_1`
    "rastrigin"            `||A x - b||^2 / (2 n) - 10 c^T cos(2 pi x) + 10 n^2`
    "norm"                 `(sum_i (|W x - y|_i + 1e-6)^p)^(1 / p)`
    "outward_snake"        `sum_b d_b0 / (|x| + 1e-6)
                           + sum_b,i (d_bi (x_i - pi cos(x_(i-1))))^2`
    "projection_quadratic" `sum_b |x d_b|^2`, elementwise
    "sum_of_quadratics"    `sum_b |x - d_b|^2 - sum_b |d_b|^2 + 1e-12`
    ====================== ============================================================

    W, A (n by n), b, c and y are N(0, 1). The last three have 1000 examples d, fair
    bits for the snake and otherwise 500 from N(0, 1) and their negatives; b goes over a
    batch.

    Args:
      name: one of these.
      dim: n; published are 20, 25, 50, 100, 784, 1024 and 2048 for the quadratic, 18 to
        27 for the norm, 12 to 64 for those with examples.
      power: p of the norm.
      batch_size: examples in a batch, drawn with replacement.
      rescale: s; the parameters are s times those of the function.
      log: the loss is `log(f + 1e-6) - log(1e-6)`.
      sparse: probability that a coordinate of a step's gradient is 0; 0.99 in the
        published problems.

    The meta-loss is `log_scaled` from the minimum up (of Rastrigin's function, whose
    minimum is unknown, from the bound `10 n^2 - 10 |c|_1`), by what the start costs on
    average. `optimum` is by FISTA for the LASSO, and an infimum at infinity for the
    snake.

    Raises:
      ValueError: unknown name; `log` of a loss with negative values.

    Example:
      >>> from l2o.tasks import make_family
      >>> norm = make_family("l2o_scale", name="norm", dim=18, power=2.5, rescale=0.1)

    Source: "Learned optimizers that scale and generalize" (Wichrowska et al., 2017) and
    Open-L2O (Chen et al., 2022).
    """
    check_known("problem", name, _KINDS)
    kind = _KINDS[name]
    variant = Variant(rescale, log, sparse)
    negative = name in ("rastrigin", "sum_of_quadratics")
    check_variant(variant, bounded=not negative)

    def objective(config):
        lowest = kind.floor if kind.minimum is None else kind.minimum
        assert lowest is not None
        # Only the LASSO's minimum costs anything; no loss is below 0 there either.
        floor = 0.0 if name == "lasso" else lowest(config, dim, power)

        def batch(key):
            if not kind.examples:
                return ()
            return config["examples"][
                jax.random.randint(key, (batch_size,), 0, _EXAMPLES)
            ]

        scale = kind.scale(config, dim, power) * (batch_size if kind.examples else 1)
        return Objective(
            loss=lambda x, drawn: kind.loss(config, dim, power, x, drawn),
            init=lambda key: jax.random.normal(key, (dim,)),
            floor=floor,
            scale=scale,
            batch=batch,
        )

    def optimum(config, data):
        del data
        assert kind.minimum is not None
        return variant_minimum(kind.minimum(config, dim, power), variant)

    title = f"{name}{dim}" + (f"-p{power:g}" if name == "norm" else "")
    return TaskFamily(
        sample=lambda key: kind.sample(key, dim),
        task=lambda config, data: variant_task(objective(config), variant),
        name=variant_name(title, variant),
        optimum=None if kind.minimum is None else jax.jit(optimum),
    )


def _square(key, dim):
    k_matrix, k_target = jax.random.split(key)
    return {
        "matrix": jax.random.normal(k_matrix, (dim, dim)),
        "target": jax.random.normal(k_target, (dim,)),
    }


def _with_waves(key, dim):
    k_square, k_waves = jax.random.split(key)
    return {
        **_square(k_square, dim),
        "waves": jax.random.normal(k_waves, (dim,)),
    }


def _bits(key, dim):
    bits = jax.random.bernoulli(key, 0.5, (_EXAMPLES, dim))
    return {"examples": bits.astype(jnp.float32)}


def _symmetric(key, dim):
    half = jax.random.normal(key, (_EXAMPLES // 2, dim))
    return {"examples": jnp.concatenate([half, -half])}


def _residual(config, x):
    return config["matrix"] @ x - config["target"]


def _quadratic_loss(config, dim, power, x, batch):
    return 0.5 * jnp.sum(_residual(config, x) ** 2)


def _lasso(config):
    return lasso_problem(config["matrix"], config["target"], 1.0)


def _rastrigin_loss(config, dim, power, x, batch):
    waves = config["waves"] @ jnp.cos(2 * jnp.pi * x)
    return 0.5 * jnp.mean(_residual(config, x) ** 2) - 10 * waves + 10 * dim**2


def _norm_loss(config, dim, power, x, batch):
    distance = jnp.abs(_residual(config, x)) + EPS
    return jnp.sum(distance**power) ** (1 / power)


def _snake_loss(config, dim, power, x, batch):
    radius = jnp.sqrt(jnp.sum(x**2))
    bends = (x[1:] - jnp.pi * jnp.cos(x[:-1])) * batch[:, 1:]
    return jnp.sum(batch[:, 0] / (radius + EPS)) + jnp.sum(bends**2)


def _sum_loss(config, dim, power, x, batch):
    # sum |x - d|^2 - sum |d|^2 without the digits that this difference loses.
    return jnp.sum(x**2 - 2 * x * batch) + 1e-12


def _zero(config, dim, power):
    return 0.0


_KINDS: dict[str, _Kind] = {
    "quadratic": _Kind(
        _square, _quadratic_loss, lambda config, n, p: n * (n + 1) / 2, _zero
    ),
    "lasso": _Kind(
        _square,
        lambda config, n, p, x, batch: _lasso(config).value(x),
        lambda config, n, p: n * (n + 1) / 2 + n * math.sqrt(2 / math.pi),
        lambda config, n, p: _lasso(config).minimum(jnp.zeros(n)),
    ),
    "rastrigin": _Kind(
        _with_waves,
        _rastrigin_loss,
        lambda config, n, p: (n + 1) / 2 + 10 * jnp.sum(jnp.abs(config["waves"])),
        None,
        lambda config, n, p: 10 * n**2 - 10 * jnp.sum(jnp.abs(config["waves"])),
    ),
    "norm": _Kind(
        _square,
        _norm_loss,
        # As if every residual had its standard deviation.
        lambda config, n, p: n ** (1 / p) * math.sqrt(n + 1),
        lambda config, n, p: n ** (1 / p) * EPS,
    ),
    "outward_snake": _Kind(
        _bits,
        _snake_loss,
        lambda config, n, p: 0.5 / math.sqrt(n) + 0.5 * (n - 1) * (1 + math.pi**2 / 2),
        _zero,
        examples=True,
    ),
    "projection_quadratic": _Kind(
        _symmetric,
        lambda config, n, p, x, batch: jnp.sum((x * batch) ** 2),
        lambda config, n, p: 1.0 * n,
        _zero,
        examples=True,
    ),
    "sum_of_quadratics": _Kind(
        _symmetric, _sum_loss, lambda config, n, p: 1.0 * n, _zero, examples=True
    ),
}
