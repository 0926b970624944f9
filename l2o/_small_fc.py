"""`small_fc`: the small per-parameter MLP on Adafactor features (small_fc_lopt)."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ._accumulators import (
    SecondMoment,
    init_second_moment,
    update_moment,
    update_second_moment,
)
from ._base import LearnedOptimizer, require_params, stable_dtypes
from ._features import (
    TIME_SCALES,
    adafactor_planes,
    inverse_rms,
    pairs,
    time_embedding,
)
from ._network import apply_mlp, init_mlp
from ._tensors import map_tensors

_EPS = 1e-5
_DECAY_SCALE = 10.0  # theta's decay offsets act tenfold in log(1 - decay)


class SmallFCState(NamedTuple):
    """State of `small_fc`: 16 bytes per float32 parameter of a matrix by default."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    momentum: tuple[Any, ...]  # one tree like params per decay
    rms: tuple[Any, ...]  # one tree like params per decay
    second: tuple[SecondMoment, ...]  # per decay, of trees like params, float32


def small_fc(
    *,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    exp_mult: float = 1e-3,
    step_mult: float = 1e-3,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    rms_decays: Sequence[float] = (0.999,),
    adafactor_decays: Sequence[float] = (0.9, 0.99, 0.999),
) -> LearnedOptimizer:
    r"""Per-parameter MLP over 28 Adafactor-like features and time (small_fc_lopt).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi(g, p, m, v)),
              \tau(t)), \quad p \leftarrow p - \lambda_1 d\, e^{\lambda_2 a}

    The features phi are listed in `adafactor_planes`; each is divided by its root mean
    square over the tensor. The accumulators' decays are meta-learned too:
    `1 - (1 - d) exp(10 x)` with x in theta. There is no learning rate to choose.

    Args:
      hidden_size, hidden_layers: the network, relu between layers; 197 meta-parameters
        by default.
      exp_mult, step_mult: lambda_2 and lambda_1.
      momentum_decays, rms_decays, adafactor_decays: initial decays d; one accumulator
        each. Groups that are multiplied with each other (momenta with rms, momenta
        with factored moments) are paired in order, or one goes with all.

    Raises:
      ValueError: decays that cannot be paired; `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.small_fc()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Practical tradeoffs between memory, compute, and performance in learned
    optimizers" (Metz et al., 2022).
    """
    decays = tuple(momentum_decays), tuple(rms_decays), tuple(adafactor_decays)
    n_momentum, n_rms, n_second = map(len, decays)
    by_rms = len(pairs(decays[0], decays[1]))
    by_second = len(pairs(decays[0], decays[2]))
    planes_count = 2 + n_momentum + 2 * n_rms + by_rms + 5 * n_second + by_second
    sizes = [planes_count + len(TIME_SCALES), *[hidden_size] * hidden_layers, 2]

    def init_theta(key):
        return {
            "momentum_decays": jnp.zeros(n_momentum, jnp.float32),
            "rms_decays": jnp.zeros(n_rms, jnp.float32),
            "adafactor_decays": jnp.zeros(n_second, jnp.float32),
            "nn": init_mlp(key, sizes),
        }

    def bind(theta, *, num_steps=None):
        del num_steps
        momentum_decay = _learned_decays(decays[0], theta["momentum_decays"])
        # As published: momentum decays may turn negative, the others may not.
        rms_decay = jnp.clip(_learned_decays(decays[1], theta["rms_decays"]), 0, 1)
        second_decay = jnp.clip(
            _learned_decays(decays[2], theta["adafactor_decays"]), 0, 1
        )

        def update_tensor(grad, param, momentum, rms, rows, cols, time):
            momentum = tuple(
                update_moment(m, grad, d)
                for m, d in zip(momentum, momentum_decay, strict=True)
            )
            rms = tuple(
                update_moment(r, grad * grad, d)
                for r, d in zip(rms, rms_decay, strict=True)
            )
            second = tuple(
                update_second_moment(SecondMoment(row, col), grad, d)
                for row, col, d in zip(rows, cols, second_decay, strict=True)
            )
            planes = adafactor_planes(grad, param, momentum, rms, second)
            scales = [inverse_rms(plane, _EPS) for plane in planes]
            direction, magnitude = apply_mlp(
                theta["nn"], planes, scales, time, grad.shape
            )
            step = direction * jnp.exp(magnitude * exp_mult) * step_mult
            rows, cols = zip(*second, strict=True)
            return -step, momentum, rms, rows, cols

        def init_fn(params):
            zeros = optax.tree.zeros_like
            return SmallFCState(
                count=jnp.zeros([], jnp.int32),
                momentum=tuple(zeros(params) for _ in range(n_momentum)),
                rms=tuple(zeros(params) for _ in range(n_rms)),
                second=tuple(
                    SecondMoment(
                        jax.tree.map(lambda p: init_second_moment(p).row, params),
                        jax.tree.map(lambda p: init_second_moment(p).col, params),
                    )
                    for _ in range(n_second)
                ),
            )

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "small_fc")
            time = time_embedding(state.count)
            updates, momentum, rms, rows, cols = map_tensors(
                functools.partial(update_tensor, time=time),
                updates,
                params,
                state.momentum,
                state.rms,
                tuple(v.row for v in state.second),
                tuple(v.col for v in state.second),
            )
            second = tuple(map(SecondMoment, rows, cols))
            count = optax.safe_increment(state.count)
            return updates, SmallFCState(count, momentum, rms, second)

        return stable_dtypes(init_fn, update_fn)

    arguments = {
        "hidden_size": hidden_size,
        "hidden_layers": hidden_layers,
        "exp_mult": exp_mult,
        "step_mult": step_mult,
        "momentum_decays": list(decays[0]),
        "rms_decays": list(decays[1]),
        "adafactor_decays": list(decays[2]),
    }
    return LearnedOptimizer(init_theta, bind, "small_fc", arguments)


def _learned_decays(initial: Sequence[float], offset: jax.Array) -> jax.Array:
    one_minus = 1 - jnp.asarray(initial, jnp.float32)
    return 1 - one_minus * jnp.exp(_DECAY_SCALE * offset)
