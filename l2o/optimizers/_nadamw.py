"""NAdamW, the hand-designed optimizer that learned ones were first compared with."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._base import require_num_steps, require_params
from .._tensors import state_zeros
from .._transformation import transformation


class NAdamWState(NamedTuple):
    """State of `nadamw_baseline`: 8 bytes per float32 parameter."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    mu: Any  # a tree like params
    nu: Any  # a tree like params
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


def nadamw_baseline(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    adamw_weight_decay: float = 0.0,
    l2_weight_decay: float = 0.0,
    use_nesterov: bool = True,
    l2_sign_bug: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with Nesterov momentum and two kinds of weight decay; nothing is learned.

    .. math:: \tilde g = g - \lambda_2 p, \quad
              m \leftarrow \beta_1 m + (1 - \beta_1) \tilde g, \quad
              v \leftarrow \beta_2 v + (1 - \beta_2) \tilde g^2, \quad
              \alpha_n = \alpha \frac{\sqrt{1 - \beta_2^n}}{1 - \beta_1^n}, \quad
              p \leftarrow p - \alpha_n \left( \frac{\beta_1 m + (1 - \beta_1)
              \tilde g}{\sqrt v + \epsilon} + \lambda_1 p \right)

    at the n-th update. This is not `optax.nadamw`: epsilon is added to the root of the
    uncorrected v, momentum and gradient share one correction, and the decoupled weight
    decay is multiplied with it too.

    Args:
      learning_rate: alpha, or an optax schedule of the number of updates made, such as
        `l2o.nadamw_schedule`.
      b1, b2, eps: as in Adam.
      adamw_weight_decay: lambda_1, decoupled.
      l2_weight_decay: lambda_2, added to the gradient.
      use_nesterov: False puts m in place of its look-ahead.
      l2_sign_bug: True, as published, subtracts lambda_2 p, which *repels* parameters
        from zero; False adds it.

    Raises:
      ValueError: `update` was called without `params`.

    Example:
      >>> import l2o, jax.numpy as jnp
      >>> tx = l2o.nadamw_baseline(l2o.nadamw_schedule(1e-3, num_steps=100))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Using a thousand optimization tasks to learn hyperparameter search
    strategies" (Metz et al., 2020).
    """
    sign = -1 if l2_sign_bug else 1

    def init_fn(params):
        mu, nu = state_zeros(params), state_zeros(params)
        return NAdamWState(jnp.zeros([], jnp.int32), mu, nu)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        require_params(params, "nadamw_baseline")
        grads, params, mu, nu = _wide((updates, params, state.mu, state.nu))
        grads = jax.tree.map(lambda g, p: g + sign * l2_weight_decay * p, grads, params)
        mu = optax.tree.update_moment(grads, mu, b1, 1)
        nu = optax.tree.update_moment(grads, nu, b2, 2)
        ahead = optax.tree.update_moment(grads, mu, b1, 1) if use_nesterov else mu
        alpha = learning_rate(state.count) if callable(learning_rate) else learning_rate
        count = optax.safe_increment(state.count)
        n = state.count + 1.0  # float64 where that is enabled
        alpha = alpha * jnp.sqrt(1 - b2**n) / (1 - b1**n)
        steps = jax.tree.map(
            lambda m, v, p: -alpha * (m / (lax.sqrt(v) + eps) + adamw_weight_decay * p),
            ahead,
            nu,
            params,
        )
        return steps, NAdamWState(count, mu, nu)

    return transformation(init_fn, update_fn, name="nadamw_baseline")


def nadamw_schedule(
    learning_rate: float,
    num_steps: int | jax.Array,
    *,
    warmup_fraction: float = 0.01,
    constant_fraction: float = 0.5,
    min_learning_rate_mult: float = 0.0,
    long_warmup_bug: bool = True,
) -> optax.Schedule:
    r"""Linear warm-up, a constant phase and half a cosine, in fractions of the run.

    .. math:: \alpha_t = \alpha \min(1, t / (f_w T)), \quad \text{from } t = f_c T
              \text{ on} \quad \alpha_t = \alpha \left( \mu + (1 - \mu) \frac{1 + \cos
              (\pi (t - f_c T) / (T - f_c T))}{2} \right)

    Args:
      learning_rate: alpha, the largest.
      num_steps: T; later steps keep the last value.
      warmup_fraction: f_w; 0 starts with alpha.
      constant_fraction: f_c, which includes the warm-up.
      min_learning_rate_mult: mu, the last value as a fraction of alpha.
      long_warmup_bug: True, as published, warms up for the larger of both fractions,
        so that (unless f_w is 0) there never is a constant phase. False takes the
        smaller.

    Raises:
      ValueError: `num_steps` is below one.

    Example:
      >>> import l2o
      >>> schedule = l2o.nadamw_schedule(1e-3, num_steps=100)
      >>> round(float(schedule(25)), 6)
      0.0005

    Source: "Using a thousand optimization tasks to learn hyperparameter search
    strategies" (Metz et al., 2020).
    """
    total = require_num_steps(num_steps, "nadamw_schedule")
    longest = max if long_warmup_bug else min
    warmup = total * longest(warmup_fraction, constant_fraction)
    constant = total * constant_fraction
    lowest = min_learning_rate_mult * learning_rate

    def schedule(count):
        step = jnp.minimum(jnp.float32(count), total)
        after = jnp.maximum(step - constant, 0)
        # Without a decay phase this is 0 / 1e-6.
        phase = math.pi * after / jnp.maximum(total - constant, 1e-6)
        decayed = lowest + (learning_rate - lowest) * (1 + jnp.cos(phase)) / 2
        if warmup_fraction <= 0:
            return decayed
        return jnp.where(
            step < warmup, learning_rate * step / jnp.maximum(warmup, 1e-6), decayed
        )

    return schedule


def _wide(tree: Any) -> Any:
    """At least float32."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32)),
        tree,
    )
