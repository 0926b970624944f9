"""`mlp`: a per-parameter MLP on momenta and time (LOLv2)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._tensors import is_held, map_tensors, state_zeros
from .._transformation import transformation
from ..rule._accumulators import update_moment
from ..rule._features import TIME_SCALES, inverse_rms, time_embedding
from ..rule._network import apply_mlp, init_mlp
from ..rule._rule import Untouched, check_untouched

_EPS = 1e-5


class MLPState(NamedTuple):
    """State of `mlp`: 24 bytes per float32 parameter with the six default momenta."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    momentum: tuple[Any, ...]  # one tree like params per decay
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


def mlp(
    *,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    exp_mult: float = 1e-3,
    step_mult: float = 1e-3,
    momentum_decays: Sequence[float] = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999),
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Per-parameter MLP over gradient, parameter, momenta and time ("LOLv2").

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(g, p, m_1..m_6), \tau(t)),
              \quad p \leftarrow p - \lambda_1 d\, e^{\lambda_2 a}

    Each feature but the time embedding is divided by its root mean square over the
    tensor. There is no learning rate to choose.

    Args:
      hidden_size, hidden_layers: the network, relu between layers; 1762 meta-parameters
        by default.
      exp_mult, step_mult: lambda_2 and lambda_1.
      momentum_decays: fixed (not meta-learned) decays, one momentum tree each.
      untouched: what becomes of entries that have had no gradient: "held", or "pushed"
        by the network, as published.

    Raises:
      ValueError: `update` was called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.mlp()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Understanding and correcting pathologies in the training of learned
    optimizers" (Metz et al., 2019).
    """
    arguments = checked(mlp, locals())
    holds = check_untouched(untouched)
    decays = tuple(momentum_decays)
    inputs = 2 + len(decays) + len(TIME_SCALES)
    sizes = [inputs, *[hidden_size] * hidden_layers, 2]

    def init_theta(key):
        return {"nn": init_mlp(key, sizes)}

    def bind(theta, *, num_steps=None):
        del num_steps

        def update_tensor(grad, param, momentum, time):
            momentum = tuple(
                update_moment(m, grad, jnp.float32(d))
                for m, d in zip(momentum, decays, strict=True)
            )
            planes = [grad, param, *momentum]
            scales = jnp.stack([inverse_rms(plane, _EPS) for plane in planes])
            direction, magnitude = apply_mlp(
                theta["nn"], planes, scales, time, grad.shape
            )
            step = direction * jnp.exp(magnitude * exp_mult) * step_mult
            if holds:
                idle = is_held(momentum[0]) if momentum else grad == 0
                step = jnp.where(idle, 0.0, step)
            return -step, momentum

        def init_fn(params):
            momentum = tuple(state_zeros(params) for _ in decays)
            return MLPState(jnp.zeros([], jnp.int32), momentum)

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "mlp")
            time = time_embedding(state.count)
            updates, momentum = map_tensors(
                functools.partial(update_tensor, time=time),
                updates,
                params,
                state.momentum,
            )
            count = optax.safe_increment(state.count)
            return updates, MLPState(count, momentum)

        return transformation(init_fn, update_fn, name="mlp")

    return LearnedOptimizer(init_theta, bind, "mlp", arguments)
