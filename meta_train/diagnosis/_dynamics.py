"""Dynamical systems: how fast small differences of a state grow or shrink."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def lyapunov_exponent(
    step: Callable[[Any], Any],
    state: Any,
    key: jax.Array,
    *,
    steps: int,
    burn_in: int = 0,
) -> jax.Array:
    r"""The leading Lyapunov exponent, per step; positive where dynamics are chaotic.

    .. math:: \lambda = \frac{1}{T - B} \sum_{t=B}^{T-1} \log |J_t v_t|, \quad
              v_{t+1} = J_t v_t / |J_t v_t|, \quad
              J_t = \frac{\partial s_{t+1}}{\partial s_t}

    Args:
      step: `state -> state`, any pytree. Only float leaves count as the state s; what
        else it holds (counters, keys) moves along, so that noise can depend on time.
      state: where the run starts.
      key: of the direction v_0.
      steps: T.
      burn_in: B, steps in which v turns towards the leading direction.

    Raises:
      ValueError: burn_in is not in 0 <= burn_in < steps, or no leaf is a float.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from l2o.meta_train import lyapunov_exponent
      >>> logistic = lambda x: 3.2 * x * (1 - x)
      >>> exponent = lyapunov_exponent(
      ...     logistic, jnp.float32(0.3), jax.random.key(0), steps=500, burn_in=100
      ... )
      >>> print(f"{exponent:.3f}")
      -0.916

    Source: "Lyapunov characteristic exponents for smooth dynamical systems" (Benettin
    et al., 1980).
    """
    if not 0 <= burn_in < steps:
        raise ValueError(f"burn_in must be from 0 to steps - 1, not {burn_in}, {steps}")
    return jnp.mean(growth(step, state, key, steps)[0][burn_in:])


def growth(
    step: Callable[[Any], Any], state: Any, key: jax.Array, steps: int
) -> tuple[jax.Array, Any]:
    """log |J_t v_t| of every step, (steps,), and the state at the end."""
    direction = _direction(state, key)

    def body(carry, _):
        state, v = carry
        f, x = _on_floats(step, state)
        _, v, state = jax.jvp(f, (x,), (v,), has_aux=True)
        size = jnp.linalg.norm(v)
        return (state, _unit(v, size, direction)), jnp.log(size)

    (state, _), logs = jax.lax.scan(body, (state, direction), None, length=steps)
    return logs, state


def spectral_radius(
    step: Callable[[Any], Any], state: Any, key: jax.Array, *, iterations: int = 100
) -> jax.Array:
    r"""The largest modulus of an eigenvalue of the step's Jacobian at one state.

    .. math:: \rho = \exp \frac{2}{n} \sum_{i=n/2}^{n-1} \log |J v_i|, \quad
              v_{i+1} = J v_i / |J v_i|

    The geometric mean, because a complex pair of eigenvalues makes the growth
    oscillate. Gradients through many steps near this state grow or shrink like powers
    of it; a single step's can be larger, see `largest_singular_value`.

    Args:
      step, state, key: as in `lyapunov_exponent`.
      iterations: n, products with the Jacobian; the error falls like 1/n.

    Raises:
      ValueError: fewer than two iterations, or no leaf is a float.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from l2o.meta_train import spectral_radius
      >>> step = lambda x: x - 0.1 * jnp.array([1.0, 30.0]) * x  # SGD on a parabola
      >>> print(f"{spectral_radius(step, jnp.ones(2), jax.random.key(0)):.3f}")
      2.000

    Source: "Gradients are not all you need" (Metz et al., 2021).
    """
    if iterations < 2:
        raise ValueError(f"spectral_radius needs iterations >= 2, not {iterations}")
    product = _jacobian(step, state)[0]
    direction = _direction(state, key)

    def body(v, _):
        v = product(v)
        size = jnp.linalg.norm(v)
        return _unit(v, size, direction), jnp.log(size)

    _, logs = jax.lax.scan(body, direction, None, length=iterations)
    return jnp.exp(jnp.mean(logs[iterations // 2 :]))


def largest_singular_value(
    step: Callable[[Any], Any], state: Any, key: jax.Array, *, iterations: int = 50
) -> jax.Array:
    r"""The norm of the step's Jacobian at one state.

    .. math:: |J|_2 = \lim |J v_i|, \quad v_{i+1} = J^T J v_i / |J^T J v_i|

    Args:
      step, state, key: as in `lyapunov_exponent`; the state's structure is kept.
      iterations: products with the Jacobian and with its transpose.

    Raises:
      ValueError: no iterations, or no leaf is a float.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from l2o.meta_train import largest_singular_value
      >>> shear = lambda x: jnp.array([[1.0, 3.0], [0.0, 1.0]]) @ x
      >>> value = largest_singular_value(shear, jnp.ones(2), jax.random.key(0))
      >>> print(f"{value:.4f}")  # (3 + sqrt(13)) / 2; both eigenvalues are 1
      3.3028

    Source: the power method on J^T J; Golub & Van Loan, "Matrix computations".
    """
    if iterations < 1:
        raise ValueError(
            f"largest_singular_value needs iterations >= 1, not {iterations}"
        )
    product, transposed = _jacobian(step, state)
    direction = _direction(state, key)

    def body(v, _):
        v = transposed(product(v))
        return _unit(v, jnp.linalg.norm(v), direction), None

    v, _ = jax.lax.scan(body, direction, None, length=iterations)
    return jnp.linalg.norm(product(v))


def _on_floats(
    step: Callable[[Any], Any], state: Any
) -> tuple[Callable[[jax.Array], tuple[jax.Array, Any]], jax.Array]:
    """The step as `vector of the float leaves -> (the next, the next state)`."""
    leaves, structure = jax.tree.flatten(state)
    leaves = [jnp.asarray(x) for x in leaves]
    moves = [jnp.issubdtype(x.dtype, np.floating) for x in leaves]
    if not any(moves):
        raise ValueError("the state has no float leaf: there is nothing to perturb")

    def floats(leaves):
        return [x for x, m in zip(leaves, moves, strict=True) if m]

    vector, unravel = ravel_pytree(floats(leaves))

    def f(vector):
        moved = iter(unravel(vector))
        new = step(
            jax.tree.unflatten(
                structure,
                [next(moved) if m else x for x, m in zip(leaves, moves, strict=True)],
            )
        )
        return ravel_pytree(floats(jax.tree.leaves(new)))[0], new

    return f, vector


def _jacobian(step: Callable[[Any], Any], state: Any) -> tuple[Callable, Callable]:
    """v -> J v and u -> J^T u."""
    f, x = _on_floats(step, state)
    _, product = jax.linearize(lambda x: f(x)[0], x)
    transposed = jax.linear_transpose(product, x)
    return product, lambda u: transposed(u)[0]


def _direction(state: Any, key: jax.Array) -> jax.Array:
    x = _on_floats(lambda s: s, state)[1]
    v = jax.random.normal(key, x.shape, x.dtype)
    return v / math.sqrt(x.size)


def _unit(v: jax.Array, size: jax.Array, fallback: jax.Array) -> jax.Array:
    """v / size; where J v = 0 the direction is lost and another one starts."""
    return jnp.where(size > 0, v / jnp.where(size > 0, size, 1.0), fallback)
