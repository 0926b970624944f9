"""A physics-informed network for the heat equation, whose solution is known."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from .._adapters import linen_functions
from .._base import Task, TaskFamily, log_scaled

_MODES = 3


class _Net(nn.Module):
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(1)(x)[..., 0]


def pinn_heat(
    hidden: Sequence[int] = (32, 32),
    *,
    points: int = 64,
    diffusivity: tuple[float, float] = (0.05, 0.2),
    weight: float = 10.0,
    name: str = "",
) -> TaskFamily:
    r"""A network that is to solve the heat equation in one dimension.

    .. math:: L = \overline{(u_t - \nu u_{xx})^2}
              + \lambda\,\overline{(u(0, x) - u_0(x))^2}
              + \lambda\,\overline{u(t, 0)^2 + u(t, 1)^2}, \quad
              u_0 = \sum_{k=1}^{3} a_k \sin k \pi x

    on the unit square; the solution is :math:`\sum a_k e^{-\nu k^2 \pi^2 t} \sin k \pi
    x`. Every task has its own nu, log-uniform, and a ~ N(0, 1/k^2); every batch its own
    points. The metric "error" is the mean squared distance to the solution.

    Args:
      hidden: widths of the tanh layers.
      points: in the interior, and as many at the start and on both borders.
      diffusivity: range of nu.
      weight: lambda.
      name: for reports.

    As a meta-loss it is `log_scaled` by lambda, about the loss of u = 0.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("pinn_heat", hidden=(16,), points=16)

    Source: Raissi et al., "Physics-informed neural networks" (2019).
    """
    functions = linen_functions(_Net(tuple(hidden)))
    modes = jnp.arange(1, _MODES + 1)
    low, high = diffusivity
    if not 0 < low <= high:
        raise ValueError(f"diffusivity must be 0 < low <= high, not {diffusivity}")

    def sample(key):
        k_nu, k_a = jax.random.split(key)
        exponent = jax.random.uniform(k_nu, minval=jnp.log(low), maxval=jnp.log(high))
        return {
            "diffusivity": jnp.exp(exponent),
            "amplitudes": jax.random.normal(k_a, (_MODES,)) / modes,
        }

    def task(config, data):
        del data
        nu = config["diffusivity"]

        def solution(t, x):
            decay = jnp.exp(-nu * (modes * jnp.pi) ** 2 * t[..., None])
            waves = jnp.sin(modes * jnp.pi * x[..., None])
            return jnp.sum(config["amplitudes"] * decay * waves, -1)

        def batch(key, split):
            del split  # all points are fresh
            return jax.random.uniform(key, (4, points))

        def loss(params, model_state, key, batch):
            def u(t, x):
                at = jnp.stack([t, x], -1)
                return functions.apply(params, model_state, key, at)[0]

            def residual(t, x):
                u_t = jax.jvp(lambda t: u(t, x), (t,), (jnp.ones_like(t),))[1]

                def u_x(x):
                    return jax.jvp(lambda x: u(t, x), (x,), (jnp.ones_like(x),))[1]

                u_xx = jax.jvp(u_x, (x,), (jnp.ones_like(x),))[1]
                return u_t - nu * u_xx

            t, x, x_0, t_b = batch
            zero = jnp.zeros_like(t)
            start = u(zero, x_0) - solution(zero, x_0)
            border = u(t_b, zero) ** 2 + u(t_b, zero + 1) ** 2
            value = jnp.mean(residual(t, x) ** 2)
            value += weight * jnp.mean(start**2 + border)
            error = jnp.mean((u(t, x) - solution(t, x)) ** 2)
            return value, (model_state, {"error": error})

        return Task(
            lambda key: functions.init(key, jnp.zeros((1, 2))),
            batch,
            loss,
            log_scaled(weight),
        )

    return TaskFamily(sample, task, name=name or "pinn_heat")
