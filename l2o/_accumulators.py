"""Running statistics of the gradient, each in one place.

All of them start at zero and none corrects its bias: what the published learned
optimizers were trained with. Functions here work on one tensor; decays are traced
scalars. Source of the factored form: Adafactor (Shazeer & Stern, 2018); of the set:
"Practical tradeoffs between memory, compute, and performance in learned optimizers"
(Metz et al., 2022).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_TINY = 1e-30  # keeps the factored moments positive at a zero gradient
_FLOOR = 1e-9


class SecondMoment(NamedTuple):
    """Second moment of one tensor, factored where it has two axes or more.

    `row` is reduced over the tensor's largest axis d0 and `col` over the second
    largest d1, both with the reduced axis kept at size 1, so that they broadcast
    against the tensor. A scalar or vector keeps the full moment in `row`, and `col`
    is a zero of shape (1,), not used: never None, because wrappers such as
    `optax.tree.map_params` expect one array per parameter.
    """

    row: jax.Array
    col: jax.Array


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The axes (d1, d0) over which `col` and `row` are reduced, or None below 2-D.

    d0 is the largest axis and d1 the next; a stable sort decides ties, so that
    (n, n) gives (0, 1).
    """
    if len(shape) < 2:
        return None
    order = np.argsort(shape, kind="stable")
    return int(order[-2]), int(order[-1])


def update_moment(moment: jax.Array, value: jax.Array, decay: jax.Array) -> jax.Array:
    """`d m + (1 - d) value`."""
    return decay * moment + (1 - decay) * value


def init_second_moment(param: jax.Array) -> SecondMoment:
    """Zeros, always float32."""
    axes = factored_axes(param.shape)
    if axes is None:
        return SecondMoment(
            jnp.zeros(param.shape, jnp.float32), jnp.zeros(1, jnp.float32)
        )
    d1, d0 = axes
    return SecondMoment(
        jnp.zeros(_reduced(param.shape, d0), jnp.float32),
        jnp.zeros(_reduced(param.shape, d1), jnp.float32),
    )


def update_second_moment(
    moment: SecondMoment, grad: jax.Array, decay: jax.Array
) -> SecondMoment:
    """`d v + (1 - d) mean(g^2 + 1e-30)`, the mean over d0 for `row`, d1 for `col`."""
    square = grad * grad + _TINY
    axes = factored_axes(grad.shape)
    if axes is None:
        return SecondMoment(update_moment(moment.row, square, decay), moment.col)
    d1, d0 = axes
    return SecondMoment(
        update_moment(moment.row, jnp.mean(square, d0, keepdims=True), decay),
        update_moment(moment.col, jnp.mean(square, d1, keepdims=True), decay),
    )


def inverse_root(
    moment: SecondMoment, shape: tuple[int, ...], eps: float = _FLOOR
) -> list[jax.Array]:
    """Factors whose product approximates `v^-1/2`; each broadcasts over `shape`.

    For a factored moment: `[(row / mean(row))^-1/2, col^-1/2]`, the mean over d1, each
    operand floored at 1e-9; `eps` is not used. Otherwise `[(v + eps)^-1/2]`.
    """
    axes = factored_axes(shape)
    if axes is None:
        return [_floored_rsqrt(moment.row + eps)]
    mean = jnp.mean(moment.row, axes[0], keepdims=True)
    return [_floored_rsqrt(moment.row / (mean + _FLOOR)), _floored_rsqrt(moment.col)]


def _floored_rsqrt(x: jax.Array) -> jax.Array:
    return lax.rsqrt(jnp.maximum(x, _FLOOR))


def _reduced(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(1 if i == axis else n for i, n in enumerate(shape))
