"""Test functions of global optimisation."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily
from ._variants import (
    EPS,
    Objective,
    Variant,
    check_variant,
    variant_minimum,
    variant_name,
    variant_task,
)


class Landscape(NamedTuple):
    """One function of a vector.

    Attributes:
      function: `x -> scalar`.
      low, high: bounds of the uniform initial points; None is N(0, 1).
      minimum: `dim -> the smallest value`; None where there is none.
      scale: `dim -> the median value above it of initial points`, roughly.
      dim: of the published problem.
      any_dim: whether it has other dimensions than that one.
    """

    function: Callable[[jax.Array], jax.Array]
    low: Any
    high: Any
    minimum: Callable[[int], float] | None
    scale: Callable[[int], float]
    dim: int = 2
    any_dim: bool = False


def landscape(
    name: str = "rosenbrock",
    dim: int | None = None,
    *,
    rescale: float = 1.0,
    log: bool = False,
    sparse: float = 0.0,
) -> TaskFamily:
    """A test function without anything random but where it starts.

    The table in docs/classical.md has the formulas. Where it says "any n", dimensions
    other than the published one are allowed.

    Args:
      name: a key of `LANDSCAPES`.
      dim: number of coordinates; the published one by default.
      rescale: s; the parameters are s times those of the function.
      log: the loss is `log(f + 1e-6) - log(1e-6)`.
      sparse: probability that a coordinate of a step's gradient is 0; 0.99 in the
        published problems.

    The meta-loss is `log_scaled` from the minimum up, by the median of initial points;
    that of "saddle", which has none, is `(10 + clip(arsinh(loss), -10, 1)) / 5`. With
    `log` it is still that of f.

    Raises:
      ValueError: unknown name; a dimension that the function does not have; `log` of a
        function with negative values.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import make_family
      >>> family = make_family("landscape", name="booth")
      >>> task = family.task({}, family.data)
      >>> float(task.loss(jnp.array([1.0, 3.0]), (), None, ())[0])
      0.0

    Source: "Learned optimizers that scale and generalize" (Wichrowska et al., 2017) and
    Open-L2O (Chen et al., 2022).
    """
    check_known("landscape", name, LANDSCAPES)
    chosen = LANDSCAPES[name]
    size = chosen.dim if dim is None else dim
    if size != chosen.dim and not (chosen.any_dim and size >= 2):
        wanted = "at least 2" if chosen.any_dim else f"{chosen.dim}"
        raise ValueError(f"{name} has {wanted} dimensions, not {size}")
    variant = Variant(rescale, log, sparse)
    minimum = None if chosen.minimum is None else chosen.minimum(size)
    check_variant(variant, bounded=minimum is not None)

    def init(key):
        if chosen.low is None:
            return jax.random.normal(key, (size,))
        low, high = jnp.asarray(chosen.low), jnp.asarray(chosen.high)
        return jax.random.uniform(key, (size,), minval=low, maxval=high)

    objective = Objective(
        loss=lambda x, batch: chosen.function(x),
        init=init,
        floor=minimum,
        scale=chosen.scale(size),
    )
    return TaskFamily(
        sample=lambda key: {},
        task=lambda config, data: variant_task(objective, variant),
        name=variant_name(f"{name}{size}" if chosen.any_dim else name, variant),
        optimum=(
            None
            if minimum is None
            else lambda config, data: variant_minimum(minimum, variant)
        ),
    )


def _rosenbrock(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def _rastrigin(x):
    return jnp.sum(10 + x**2 - 10 * jnp.cos(2 * jnp.pi * x))


def _ackley(x):
    square = jnp.mean(x**2)
    # At the minimum the root has no derivative; the function's limit there is a cone.
    positive = square > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
    waves = jnp.exp(jnp.mean(jnp.cos(2 * jnp.pi * x)))
    return 20 * -jnp.expm1(-0.2 * root) + (math.e - waves)


def _beale(p):
    x, y = p
    factors = ((1.5, y), (2.25, y**2), (2.625, y**3))
    return sum((c - x + x * power) ** 2 for c, power in factors)


def _booth(p):
    x, y = p
    return (x + 2 * y - 7) ** 2 + (2 * x + y - 5) ** 2


def _styblinski_tang(x):
    return jnp.sum(0.5 * (x**4 - 16 * x**2 + 5 * x) + 40)


def _matyas(p):
    x, y = p
    return 0.26 * (x**2 + y**2) - 0.48 * x * y


def _branin(p):
    x, y = p
    valley = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * jnp.cos(x) + 10


def _michalewicz(x):
    steep = jnp.sin(jnp.arange(1, 3) * x**2 / jnp.pi) ** 10
    return 2 - jnp.sum(jnp.sin(x) * steep)


def _log_sum_exp(p):
    x, y = p
    exponents = [x + 3 * y - 0.1, x - 3 * y - 0.1, -x - 0.1, jnp.zeros_like(x)]
    return jax.nn.logsumexp(jnp.stack(exponents))


def _saddle(p):
    return p[0] ** 2 - p[1] ** 2


def _bowl(condition: float, angle: float, p: jax.Array) -> jax.Array:
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = cos * p[0] - sin * p[1], sin * p[0] + cos * p[1]
    return 0.5 * (condition * x**2 + y**2)


def _dependency_chain(x):
    # The first term is in every summand of the published sum.
    return jnp.sum(x[0] ** 2 + x[1:] ** 2 / (x[:-1] ** 2 + EPS))


def _min_max_well(x):
    square = x**2
    return jnp.max(square) + 1 / jnp.min(square) - 2 + 1e-12


def _constant(value: float) -> Callable[[int], float]:
    return lambda dim: value


def _bowls() -> dict[str, Landscape]:
    cases = {
        "bowl0.1": (0.1, 0.0),
        "bowl1": (1.0, 0.0),
        "bowl5": (5.0, 0.0),
        "bowl5_rotated": (5.0, math.pi / 4),
    }
    return {
        name: Landscape(
            functools.partial(_bowl, condition, angle),
            *(None, None),
            _constant(0.0),
            _constant((1 + condition) / 4),
        )
        for name, (condition, angle) in cases.items()
    }


# Of one coordinate of Styblinski and Tang's function, at x = -2.903534.
_STYBLINSKI_TANG = 0.8338342962285737

LANDSCAPES: dict[str, Landscape] = {
    "rosenbrock": Landscape(
        *(_rosenbrock, -5.0, 10.0),
        _constant(0.0),
        lambda dim: 1.3e5 * (dim - 1) - 1.15e5,
        any_dim=True,
    ),
    "rastrigin": Landscape(
        *(_rastrigin, -5.12, 5.12),
        _constant(0.0),
        lambda dim: 18.0 * dim,
        any_dim=True,
    ),
    "ackley": Landscape(
        *(_ackley, -32.768, 32.768), _constant(0.0), _constant(21.0), any_dim=True
    ),
    "beale": Landscape(_beale, -4.5, 4.5, _constant(0.0), _constant(320.0)),
    "booth": Landscape(_booth, -10.0, 10.0, _constant(0.0), _constant(240.0)),
    "styblinski_tang": Landscape(
        *(_styblinski_tang, -5.0, 5.0),
        lambda dim: _STYBLINSKI_TANG * dim,
        lambda dim: 30.0 * dim,
        any_dim=True,
    ),
    "matyas": Landscape(_matyas, -10.0, 10.0, _constant(0.0), _constant(9.0)),
    "branin": Landscape(
        *(_branin, (-5.0, 0.0), (10.0, 15.0)),
        _constant(0.39788735772973816),
        _constant(35.0),
    ),
    # Only where x starts is it at least 0.193377: far out it comes as close to 0 as
    # one likes.
    "michalewicz": Landscape(
        *(_michalewicz, 0.0, math.pi), _constant(0.0), _constant(1.9)
    ),
    "log_sum_exp": Landscape(
        *(_log_sum_exp, None, None),
        _constant(math.log(1 + 2 * math.sqrt(2) * math.exp(-0.1))),
        _constant(1.1),
    ),
    "saddle": Landscape(_saddle, None, None, None, _constant(1.0)),
    **_bowls(),
    "dependency_chain": Landscape(
        *(_dependency_chain, None, None),
        _constant(0.0),
        lambda dim: 1.3 * dim**2,
        dim=21,
        any_dim=True,
    ),
    "min_max_well": Landscape(
        *(_min_max_well, None, None),
        _constant(0.0),
        lambda dim: 1.25 * dim**2 + 2,
        dim=20,
        any_dim=True,
    ),
}
