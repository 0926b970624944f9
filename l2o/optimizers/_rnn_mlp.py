"""`rnn_mlp`: an LSTM per tensor over a per-parameter MLP (hierarchical)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params, require_value
from .._options import takes
from .._tensors import is_held, rows_of, state_rows, state_zeros, tree_of
from .._transformation import transformation
from ..recurrent._cell import (
    LSTMState,
    init_linear,
    init_lstm,
    init_rows,
    linear,
    log_magnitude,
    lstm,
    moments,
    repeated,
)
from ..rule._accumulators import update_moment
from ..rule._features import TIME_SCALES, inverse_rms
from ..rule._network import apply_mlp, init_mlp
from ..rule._rule import Untouched, check_untouched

_EPS = 1e-5
_TRAIN_DECAY, _VALID_DECAY = 0.9, 0.95  # of the statistics of the two losses
_CLIP_DECAY = 0.99
_CLIP_RATIO = 10.0
_TENSOR_FEATURES = 18  # beside the two messages
_TRUNCATED_STD = 0.87962566  # of a normal distribution cut at two deviations


class LossStatistics(NamedTuple):
    """Running mean and variance of a loss, both starting at zero."""

    mean: jax.Array  # shape ()
    variance: jax.Array  # shape ()
    count: jax.Array  # type: ignore[assignment]  # shape (), int32: losses seen


class RNNMLPState(NamedTuple):
    """State of `rnn_mlp`: 40 bytes per float32 parameter, 576 per tensor.

    Arrays with an axis of tensors have a row for each tensor that has elements, in the
    order of `jax.tree.leaves`.
    """

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: calls, of any kind
    momentum: tuple[Any, ...]  # one tree like params per decay
    rms: tuple[Any, ...]  # one tree like params per decay
    lstm: LSTMState  # two arrays (tensors, lstm_hidden_size)
    from_mlp: jax.Array  # (tensors, from_mlp_size)
    from_lstm: jax.Array  # (from_lstm_size,)
    train_loss: LossStatistics
    valid_loss: LossStatistics
    grad_scale: jax.Array  # shape (): running root mean square of clipped gradients
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


class _Rule(NamedTuple):
    """What the arguments of `rnn_mlp` say of an update."""

    decays: tuple[float, ...]
    exp_mult: float
    step_mult: float
    holds: bool


class _Tensor(NamedTuple):
    """One tensor, and its m and v for each decay."""

    grad: jax.Array
    param: jax.Array
    momentum: list[jax.Array]
    rms: list[jax.Array]


@takes(old={"decays": "momentum_decays"})
def rnn_mlp(
    *,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    from_mlp_size: int = 16,
    from_lstm_size: int = 18,
    lstm_to_ff: int = 17,
    lstm_hidden_size: int = 64,
    momentum_decays: Sequence[float] = (0.5, 0.9, 0.99, 0.999, 0.9999),
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Per-parameter MLP that an LSTM per tensor conditions, on both losses.

    .. math:: h, \mathrm{all} = \mathrm{LSTM}_\theta(\mathrm{statistics}(g, p, m, v),
              \mathrm{losses}, \mathrm{from\_mlp}, \mathrm{from\_lstm}), \quad
              (d, a, \mathrm{from\_mlp}) = \mathrm{MLP}_\theta(\mathrm{normalise}(
              g, p, \log|p|, m, v, m v^{-1/2}, v^{-1/2}), W h, t), \quad
              p \leftarrow p - \lambda_1 d\, e^{\lambda_2 a}

    The two levels exchange messages: the LSTM gets from_mlp, the mean over the tensor
    of the MLP's further outputs, and from_lstm, a projection of h averaged over all
    tensors; both are from the update before. Gradients are first clipped to ten times
    their running root mean square. There is no learning rate to choose.

    `update` needs `value=`, the training loss. A call with `is_valid=True` hands in a
    validation loss instead: it returns zero updates and ignores the gradients, but
    later updates see that loss. It counts as a step of the time embedding.

    Args:
      step_mult, exp_mult: lambda_1 and lambda_2.
      hidden_size, hidden_layers: the MLP, relu between layers.
      from_mlp_size, from_lstm_size, lstm_to_ff: widths of the messages to the LSTM, and
        of W h to the MLP.
      lstm_hidden_size: width of h; 35 799 meta-parameters by default.
      momentum_decays: fixed (not meta-learned) decays of m and v, two trees for each.
      untouched: what becomes of entries that have had no gradient: "held", or "pushed"
        by the network, as published.

    Raises:
      ValueError: `update` was called without `params` or without `value`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.rnn_mlp()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> state = tx.init(params)
      >>> updates, state = tx.update(params, state, params, value=3.0)
      >>> _, state = tx.update(params, state, params, value=3.5, is_valid=True)

    Source: "Tasks, stability, architecture, and compute: training more effective
    learned optimizers, and using them to train themselves" (Metz et al., 2020).
    """
    arguments = checked(rnn_mlp, locals())
    rule = _Rule(
        tuple(momentum_decays), exp_mult, step_mult, check_untouched(untouched)
    )
    lstm_inputs = from_lstm_size + from_mlp_size + _TENSOR_FEATURES
    # Of g, p and log|p|, and four per decay; then what is equal for the tensor.
    mlp_inputs = 3 + 4 * len(rule.decays) + len(TIME_SCALES) + 3 + lstm_to_ff
    sizes = [mlp_inputs, *[hidden_size] * hidden_layers, 2 + from_mlp_size]

    def init_theta(key):
        keys = jax.random.split(key, 6)
        return {
            "initial_from_lstm": _init_message(keys[0], from_lstm_size),
            "initial_from_mlp": _init_message(keys[1], from_mlp_size),
            "lstm_init": {
                name: jnp.zeros((1, lstm_hidden_size), jnp.float32)
                for name in LSTMState._fields
            },
            "lstm": init_lstm(keys[2], lstm_inputs, lstm_hidden_size),
            "rnn_to_ff": init_linear(keys[3], lstm_hidden_size, lstm_to_ff),
            "rnn_to_in": init_linear(keys[4], lstm_hidden_size, from_lstm_size),
            "nn": init_mlp(keys[5], sizes),
        }

    def bind(theta, *, num_steps=None):
        del num_steps

        def init_fn(params):
            return _init_state(theta, len(rule.decays), params)

        def update_fn(
            updates, state, params=None, *, value=None, is_valid=False, **extra_args
        ):
            del extra_args
            require_params(params, "rnn_mlp")
            value = require_value(value, "rnn_mlp")
            kinds = _validate, functools.partial(_train, theta, rule, params)
            validate, train = (
                functools.partial(_with_types, kind, updates, state, value)
                for kind in kinds
            )
            if isinstance(is_valid, bool | np.bool_):
                return validate() if is_valid else train()
            return lax.cond(is_valid, validate, train)

        return transformation(init_fn, update_fn, name="rnn_mlp")

    needs = ("params", "value")
    return LearnedOptimizer(init_theta, bind, "rnn_mlp", arguments, needs)


def _init_state(theta: Any, decays: int, params: Any) -> RNNMLPState:
    """The first state, with trees for so many decays."""
    tensors = state_rows(params)
    return RNNMLPState(
        count=jnp.zeros([], jnp.int32),
        momentum=tuple(state_zeros(params) for _ in range(decays)),
        rms=tuple(state_zeros(params) for _ in range(decays)),
        lstm=init_rows(theta["lstm_init"], tensors),
        from_mlp=repeated(theta["initial_from_mlp"], tensors),
        from_lstm=jnp.array(theta["initial_from_lstm"], copy=True),
        train_loss=_no_loss(),
        valid_loss=_no_loss(),
        grad_scale=jnp.float32(1 - _CLIP_DECAY),
    )


def _no_loss() -> LossStatistics:
    return LossStatistics(
        jnp.zeros([], jnp.float32),
        jnp.zeros([], jnp.float32),
        jnp.zeros([], jnp.int32),
    )


def _with_types(
    kind: Callable[..., tuple[Any, RNNMLPState]],
    updates: Any,
    state: RNNMLPState,
    value: jax.Array,
) -> tuple[Any, RNNMLPState]:
    """A call of that kind, its results of the types of what is given."""
    new, after = kind(updates, state, value)
    # The branches of `cond` must agree.
    new = optax.tree.cast_like(new, updates)
    return new, optax.tree.cast_like(after, state)


def _validate(
    updates: Any, state: RNNMLPState, value: jax.Array
) -> tuple[Any, RNNMLPState]:
    """Zero updates, and the state that has seen a validation loss."""
    seen = _see_loss(state.valid_loss, value, _VALID_DECAY)
    count = optax.safe_increment(state.count)
    state = state._replace(count=count, valid_loss=seen)
    return optax.tree.zeros_like(updates), state


def _train(
    theta: Any,
    rule: _Rule,
    params: Any,
    updates: Any,
    state: RNNMLPState,
    value: jax.Array,
) -> tuple[Any, RNNMLPState]:
    """The updates, and the state that has seen gradients and a training loss."""
    count = optax.safe_increment(state.count)
    train_loss = _see_loss(state.train_loss, value, _TRAIN_DECAY)
    losses = _normalised_losses(train_loss, state.valid_loss, value)
    params = rows_of(updates, params)
    if not params:
        return updates, state._replace(count=count, train_loss=train_loss)

    grads, grad_scale = _clip(
        rows_of(updates, updates), state.grad_scale, train_loss.count
    )
    momentum, rms = _next_moments(rule.decays, updates, state, grads)
    tensors = [
        _Tensor(grad, param, [m[i] for m in momentum], [v[i] for v in rms])
        for i, (grad, param) in enumerate(zip(grads, params, strict=True))
    ]
    cell = _next_lstm(theta, tensors, losses, state)
    from_lstm = jnp.mean(linear(theta["rnn_to_in"], cell.hidden), 0)
    to_mlp = linear(theta["rnn_to_ff"], cell.hidden)
    steps, from_mlp = _step(theta, rule, tensors, to_mlp, state.count)

    return tree_of(updates, steps), RNNMLPState(
        count=count,
        momentum=tuple(tree_of(updates, m) for m in momentum),
        rms=tuple(tree_of(updates, v) for v in rms),
        lstm=cell,
        from_mlp=jnp.stack(from_mlp),
        from_lstm=from_lstm,
        train_loss=train_loss,
        valid_loss=state.valid_loss,
        grad_scale=grad_scale,
    )


def _next_moments(
    decays: Sequence[float], updates: Any, state: RNNMLPState, grads: list[jax.Array]
) -> tuple[list[list[jax.Array]], list[list[jax.Array]]]:
    """m and v, per decay a list of tensors."""
    momentum, rms = [], []
    for d, old_m, old_v in zip(decays, state.momentum, state.rms, strict=True):
        olds = zip(rows_of(updates, old_m), grads, strict=True)
        momentum.append([update_moment(m, g, jnp.float32(d)) for m, g in olds])
        olds = zip(rows_of(updates, old_v), grads, strict=True)
        rms.append([update_moment(v, g * g, jnp.float32(d)) for v, g in olds])
    return momentum, rms


def _next_lstm(
    theta: Any, tensors: list[_Tensor], losses: list[jax.Array], state: RNNMLPState
) -> LSTMState:
    """The LSTM has seen both messages and the statistics of all tensors."""
    rows = [_tensor_features(*tensor, *losses) for tensor in tensors]
    shared = jnp.tile(state.from_lstm, (len(tensors), 1))
    inputs = jnp.concatenate([shared, state.from_mlp, jnp.stack(rows)], -1)
    return lstm(theta["lstm"], inputs, state.lstm)


def _step(
    theta: Any,
    rule: _Rule,
    tensors: list[_Tensor],
    to_mlp: jax.Array,
    count: jax.Array,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """The updates of all tensors, and their messages to the LSTM."""
    time = _sine_embedding(count)
    steps, from_mlp = [], []
    for row, tensor in zip(to_mlp, tensors, strict=True):
        of_tensor = _constants(tensor.param, len(tensors))
        planes = _planes(*tensor)
        constants = jnp.concatenate([time, of_tensor, row])
        step, message = _step_of_tensor(theta["nn"], rule, tensor, planes, constants)
        steps.append(step)
        from_mlp.append(message)
    return steps, from_mlp


def _step_of_tensor(
    nn: Any,
    rule: _Rule,
    tensor: _Tensor,
    planes: list[jax.Array],
    constants: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`-lambda_1 d e^(lambda_2 a)`, and the means of the MLP's further outputs."""
    planes = [jnp.atleast_1d(plane) for plane in planes]
    scales = jnp.stack([inverse_rms(plane, _EPS) for plane in planes])
    direction, magnitude, *message = apply_mlp(
        nn, planes, scales, constants, planes[0].shape
    )
    step = direction * jnp.exp(magnitude * rule.exp_mult) * rule.step_mult
    step = -step.reshape(tensor.param.shape)
    from_mlp = jnp.stack([jnp.mean(x) for x in message])
    if rule.holds:
        step = jnp.where(is_held(tensor.momentum[0], tensor.rms[-1]), 0.0, step)
    return step, from_mlp


def _init_message(key: jax.Array, size: int) -> jax.Array:
    message = jax.random.truncated_normal(key, -2, 2, (size,), jnp.float32)
    return message / np.float32(np.sqrt(size) * _TRUNCATED_STD)


def _correction(decay: float, count: jax.Array) -> jax.Array:
    # The published form adds 1e-8 instead; compiled, that may be 1 / 0 at count 0.
    return 1 / jnp.maximum(1 - decay ** jnp.float32(count), 1e-8)


def _see_loss(seen: LossStatistics, value: jax.Array, decay: float) -> LossStatistics:
    mean = update_moment(seen.mean, value, jnp.float32(decay))
    variance = update_moment(seen.variance, (mean - value) ** 2, jnp.float32(decay))
    return LossStatistics(mean, variance, optax.safe_increment(seen.count))


def _normalised_losses(
    train_loss: LossStatistics, valid_loss: LossStatistics, value: jax.Array
) -> list[jax.Array]:
    """This loss and the mean of the validation losses, as the LSTM sees them."""
    # Both are measured by the statistics of the training loss.
    train = _normalised_loss(train_loss, value)
    valid = valid_loss.mean * _correction(_VALID_DECAY, valid_loss.count)
    return [train, _normalised_loss(train_loss, valid)]


def _normalised_loss(seen: LossStatistics, value: jax.Array) -> jax.Array:
    c = _correction(_TRAIN_DECAY, seen.count)
    z = (value - seen.mean * c) * lax.rsqrt(seen.variance * c + 1e-8)
    return jnp.clip(z, -5, 5)


def _clip(
    grads: list[jax.Array], scale: jax.Array, count: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """The clipped gradients, and the running scale that has seen them.

    The scale starts at `1 - decay` as if the gradients before the first had size one,
    so `count` includes this update.
    """
    bound = scale / (1 - _CLIP_DECAY ** jnp.float32(count)) * _CLIP_RATIO
    grads = [jnp.clip(grad, -bound, bound) for grad in grads]
    square = sum((jnp.mean(g * g) for g in grads), jnp.float32(0)) / len(grads)
    new = lax.sqrt(square + 1e-8)
    return grads, update_moment(scale, new, jnp.float32(_CLIP_DECAY))


def _norm(x: jax.Array) -> jax.Array:
    """The L2 norm, with gradient zero where it is zero (biases often start there)."""
    square = jnp.sum(x * x)
    positive = square > 0
    return jnp.where(positive, lax.sqrt(jnp.where(positive, square, 1)), 0)


def _tensor_features(
    grad: jax.Array,
    param: jax.Array,
    momentum: Sequence[jax.Array],
    rms: Sequence[jax.Array],
    train_loss: jax.Array,
    valid_loss: jax.Array,
) -> jax.Array:
    """What the LSTM sees of one tensor, in published (alphabetic) order.

    The means of m and of v run over all decays. Of the shape, four axes are seen.
    """
    m_mean, m_var = moments(momentum)
    v_mean, v_var = moments(rms)
    p_mean, p_var = moments([param])
    axes = [*param.shape, 1, 1, 1, 1][:4]
    features = [
        log_magnitude(_norm(grad)),
        1.0 if param.ndim == 0 else -1.0,
        *(log_magnitude(m_mean), jnp.sign(m_mean)),
        *(log_magnitude(v_mean), jnp.sign(v_mean)),
        *(log_magnitude(p_mean), jnp.sign(p_mean)),
        log_magnitude(_norm(param)),
        *(np.log(axes) - 1),
        *(train_loss, valid_loss),
        *(log_magnitude(m_var), log_magnitude(v_var), log_magnitude(p_var)),
    ]
    return jnp.stack([jnp.float32(x) for x in features])


def _planes(
    grad: jax.Array,
    param: jax.Array,
    momentum: Sequence[jax.Array],
    rms: Sequence[jax.Array],
) -> list[jax.Array]:
    """What the MLP sees of each parameter, in published (alphabetic) order."""
    inverse_std = [lax.rsqrt(v + 1e-6) for v in rms]
    return [
        grad,
        param,
        jnp.log(jnp.abs(param) + 1e-8),
        *momentum,
        *rms,
        *(m * s for m, s in zip(momentum, inverse_std, strict=True)),
        *inverse_std,
    ]


def _sine_embedding(count: jax.Array) -> jax.Array:
    scales = jnp.asarray(TIME_SCALES, jnp.float32) * jnp.float32(np.pi)
    return jnp.sin(jnp.float32(count) / scales)


def _constants(param: jax.Array, tensors: int) -> jax.Array:
    """What the MLP sees of the whole tensor, not normalised."""
    return jnp.stack(
        [
            jnp.float32(np.log(tensors) - 1),
            jnp.log(_norm(param) + 1e-8),
            jnp.float32(np.log(param.size)),
        ]
    )
