"""`nn_adam`: Adam whose hyper-parameters an LSTM steers, tensor by tensor."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._arguments import checked, log_of
from .._base import LearnedOptimizer, require_params
from .._options import takes
from .._tensors import rows_of, state_rows, state_zeros, tree_of
from .._transformation import transformation
from ..recurrent._cell import (
    LSTMState,
    init_lstm,
    init_rows,
    linear,
    log_magnitude,
    lstm,
    moments,
    repeated,
)
from ..rule._accumulators import update_moment

_FEATURES = 19
# Of the learning rate, 1 - b1, 1 - b2 and eps, in the order of the LSTM's outputs.
_SMALLEST = (1e-8, math.exp(-10), math.exp(-10), 1e-11)
_LARGEST = (1e3, 1.0, 1.0, 1e4)


class NNAdamState(NamedTuple):
    """State of `nn_adam`: 8 bytes per float32 parameter, 272 per tensor.

    Arrays with an axis of tensors have a row for each tensor that has elements, in the
    order of `jax.tree.leaves`.
    """

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    momentum: Any  # a tree like params
    rms: Any  # a tree like params
    hyper: jax.Array  # (tensors, 4): .1 log of lr, 1 - b1, 1 - b2, eps
    lstm: LSTMState  # two arrays (tensors, lstm_hidden_size)
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(old={"output_scale": "step_mult"})
def nn_adam(
    *,
    lstm_hidden_size: int = 32,
    learning_rate: float = 1e-4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    step_mult: float = 0.01,
    decay_strength: float = 0.0,
) -> LearnedOptimizer:
    r"""Adam with hyper-parameters per tensor that an LSTM moves after every update.

    .. math:: p \leftarrow p - \frac{\alpha (1 + \epsilon)}{\epsilon +
              \sqrt{v + 10^{-10}}} m, \quad
              y \leftarrow y + \lambda\, W h, \quad
              y = \tfrac{1}{10} \log(\alpha, 1 - \beta_1, 1 - \beta_2, \epsilon)

    with the moments of Adam, not corrected for their start at zero, of gradients
    clipped to 1000. The factor of one plus epsilon lets a large epsilon turn the
    second moment off without a large learning rate. h is the state of an LSTM that
    sees 19 statistics of the tensor; the update uses y from before.

    Args:
      lstm_hidden_size: 6856 meta-parameters at 32, 21 896 at 64.
      learning_rate, b1, b2, eps: where meta-training starts; theta holds y of them,
        from which every tensor starts in turn. W starts at zero.
      step_mult: lambda.
      decay_strength: the share of its distance to theta's y that y loses per update.

    Raises:
      ValueError: `update` was called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.nn_adam()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: google/learned_optimization, learned_optimizers/nn_adam.py (2021).
    """
    arguments = checked(nn_adam, locals())
    logs = {
        "learning_rate": log_of("nn_adam", "learning_rate", learning_rate),
        "eps": log_of("nn_adam", "eps", eps),
    }

    def init_theta(key):
        return {
            "lstm_init": {
                name: jnp.zeros((1, lstm_hidden_size), jnp.float32)
                for name in LSTMState._fields
            },
            "lstm": init_lstm(key, _FEATURES, lstm_hidden_size),
            # Zero, so that untrained it is the Adam it starts from.
            "controls": {
                "w": jnp.zeros((lstm_hidden_size, 4), jnp.float32),
                "b": jnp.zeros(4, jnp.float32),
            },
            "lr": jnp.float32(logs["learning_rate"] / 10),
            "b1": jnp.float32(math.log1p(-b1) / 10),
            "b2": jnp.float32(math.log1p(-b2) / 10),
            "eps": jnp.float32(logs["eps"] / 10),
        }

    def bind(theta, *, num_steps=None):
        del num_steps
        start = jnp.stack([theta[name] for name in ("lr", "b1", "b2", "eps")])

        def init_fn(params):
            tensors = state_rows(params)
            return NNAdamState(
                count=jnp.zeros([], jnp.int32),
                momentum=state_zeros(params),
                rms=state_zeros(params),
                hyper=repeated(start, tensors),
                lstm=init_rows(theta["lstm_init"], tensors),
            )

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "nn_adam")
            count = optax.safe_increment(state.count)
            old = [
                rows_of(updates, x)
                for x in (updates, params, state.momentum, state.rms)
            ]
            if not old[0]:
                return updates, state._replace(count=count)
            steps, momentum, rms, features = [], [], [], []
            for grad, param, m, v, y in zip(*old, state.hyper, strict=True):
                grad = jnp.clip(grad, -1000, 1000)
                lr, b1, b2, eps = _decode(y)
                m = update_moment(m, grad, b1)
                v = update_moment(v, grad * grad, b2)
                steps.append(-lr * (1 + eps) / (eps + lax.sqrt(v + 1e-10)) * m)
                momentum.append(m)
                rms.append(v)
                features.append(_tensor_features(grad, param, m, v, y))
            cell = lstm(theta["lstm"], jnp.stack(features), state.lstm)
            hyper = state.hyper + step_mult * linear(theta["controls"], cell.hidden)
            hyper = hyper - decay_strength * (hyper - start)
            return tree_of(updates, steps), NNAdamState(
                count,
                tree_of(updates, momentum),
                tree_of(updates, rms),
                _encode(*_decode(hyper)),  # now in range
                cell,
            )

        return transformation(init_fn, update_fn, name="nn_adam")

    starts = {"learning_rate": "lr", "b1": "b1", "b2": "b2", "eps": "eps"}
    return LearnedOptimizer(
        init_theta,
        bind,
        "nn_adam",
        arguments,
        starts={name: (leaf,) for name, leaf in starts.items()},
    )


def _decode(hyper: jax.Array) -> list[jax.Array]:
    """lr, b1, b2 and eps, from the last axis."""
    low, high = (
        jnp.asarray(np.log(x) / 10, jnp.float32) for x in (_SMALLEST, _LARGEST)
    )
    decoded = jnp.exp(10 * jnp.clip(hyper, low, high))
    lr, not_b1, not_b2, eps = jnp.moveaxis(decoded, -1, 0)
    return [lr, 1 - not_b1, 1 - not_b2, eps]


def _encode(lr: jax.Array, b1: jax.Array, b2: jax.Array, eps: jax.Array) -> jax.Array:
    # As published from the decays, which keep three digits of the smallest 1 - b.
    return jnp.log(jnp.stack([lr, 1 - b1, 1 - b2, eps], -1)) / 10


def _tensor_features(
    grad: jax.Array, param: jax.Array, m: jax.Array, v: jax.Array, hyper: jax.Array
) -> jax.Array:
    """What the LSTM sees of one tensor, in published (alphabetic) order."""
    lr, b1, b2, eps = 0.2 * jnp.clip(hyper, -5, 5)
    (g_mean, g_var), (m_mean, m_var), (p_mean, p_var), (v_mean, v_var) = (
        moments([x]) for x in (grad, m, param, v)
    )

    def size(x):
        return log_magnitude(x) / 2

    features = [
        *(b1, b2, eps),
        *(1.0 if grad.ndim == 1 else -1.0, 1.0 if grad.ndim == 0 else -1.0),
        lr,
        *(size(g_mean), jnp.sign(g_mean), size(jnp.mean(jnp.abs(grad)))),
        *(size(m_mean), jnp.sign(m_mean)),
        *(size(p_mean), jnp.sign(p_mean)),
        *(size(v_mean), jnp.sign(v_mean)),
        *(size(g_var), size(m_var), size(p_var), size(v_var)),
    ]
    return jnp.stack([jnp.float32(x) for x in features])
