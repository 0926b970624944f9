"""`velo`: a per-tensor LSTM that mixes a bank of per-parameter MLPs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import checked
from .._base import LearnedOptimizer, require_num_steps, require_params, require_value
from .._options import check_published, takes
from .._tensors import rows_of, state_rows, with_elements
from .._transformation import transformation
from ..kernels._dispatch import update_tree
from ..kernels._statistics import mean_and_variance
from ..recurrent._cell import LSTMState, init_linear, init_rows, linear, log_magnitude
from ..recurrent._loss_features import LossBuffer, init_loss_buffer, update_loss_buffer
from ..recurrent._mixing_lstm import (
    RUN_FEATURES,
    fraction_embedding,
    init_mixing_lstm,
    mixing_lstm,
)
from ..recurrent._options import OLD_FLAGS, SCHEDULE, Defect, ScheduleOptions
from ..rule._accumulators import (
    Accumulators,
    Decays,
    check_layout,
    init_accumulators,
)
from ..rule._features import check_features, pairs
from ..rule._network import init_mlp
from ..rule._options import (
    RULE,
    RuleOptions,
    decays_of,
    from_factoring,
    layer_sizes,
)
from ..rule._rule import GRADIENT_BOUND, Rule, Shared, check_untouched

_MAX_RANK = 5


class VeLOState(NamedTuple):
    """State of `velo`: 16 bytes per parameter of a matrix, 8 h bytes per tensor."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    lstm: LSTMState  # shapes (tensors, h)
    loss: LossBuffer
    num_steps: jax.Array  # shape (), float32: of the run
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


class VeLOOptions(RuleOptions, ScheduleOptions, total=False):
    """`RuleOptions` and `ScheduleOptions` in one.

    Attributes:
      param_scale_bound: bound of the tensor's root mean square, times the root of its
        size, by which the step is multiplied; None for none.
    """

    param_scale_bound: float | None


VELO: Mapping[str, Any] = {**RULE, **SCHEDULE, "param_scale_bound": None}
OLD_VELO: Mapping[str, Any] = {
    "clip_param_scale_amount": "param_scale_bound",
    "factoring": from_factoring,
    **OLD_FLAGS,
}


@takes(VELO, old=OLD_VELO)
def velo(
    *,
    lstm_hidden_size: int = 512,
    param_inits: int = 256,
    step_mult: float = 1e-3,
    ff_mult: float = 100.0,
    **options: Unpack[VeLOOptions],
) -> LearnedOptimizer:
    r"""Hypernetwork: an LSTM per tensor weighs a bank of per-parameter MLPs (VeLO).

    .. math:: c, \eta = \mathrm{LSTM}_\theta(\text{tensor, loss, time}),
              \quad W = \kappa\,\mathrm{mean}_k(c_k W_k), \quad
              (d, a) = \mathrm{MLP}_W(\phi),
    .. math:: p \leftarrow p - \eta\, \|p\|_{rms}\, \lambda_1 d\, e^{\lambda_2 a}

    The features phi are those of `adafactor_features`, each divided by its root mean
    square over the tensor. Gradients are cut to +-1000. There is no learning rate to
    choose; `update` needs the loss and `bind` the length of the training run, beyond
    which steps stay those of its end. For more than the 150 000 steps it was trained
    for see `extend_horizon`.

    Args:
      lstm_hidden_size, param_inits: size of the LSTM and of the bank. The released
        weights have 512 and 256: 2 320 385 meta-parameters.
      step_mult: lambda_1.
      ff_mult: kappa; Celo's retrained velo and velo_s have 1.
      **options: see `VeLOOptions`: hidden_size 4 and hidden_layers 2, relu between
        layers; lambda_2, exp_mult, 0.001; momentum_decays (0.9, 0.99, 0.999),
        rms_decays (0.999,) and adafactor_decays (0.9, 0.99, 0.999), fixed; all
        features; param_scale_mult and mix_layers on; published ("dead_mix_layer",);
        layout "jax", of which "torch_velo" is PyLO's; untouched "held".

    Raises:
      ValueError: decays that cannot be paired; unknown features, layout, untouched or
        defect; `num_steps`, `params` or `value` is missing.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.velo(lstm_hidden_size=8, param_inits=2)
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params, value=0.5)

    Source: "VeLO: Training versatile learned optimizers by scaling up" (Metz et al.,
    2022).
    """
    arguments = checked(velo, locals())
    published = options["published"]
    check_published(published, get_args(Defect))
    decays = decays_of(options)
    rule = velo_rule(options)
    validation_mode = options["validation_mode"]
    constant_loss = options["constant_loss"]
    inputs = tensor_feature_count(decays) + (validation_mode is not None)

    def init_theta(key):
        return init_hypernetwork(
            key,
            inputs,
            lstm_hidden_size,
            param_inits,
            layer_sizes(decays, options),
            mix_layers=options["mix_layers"],
            dead_mix_layer="dead_mix_layer" in published,
        )

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "velo")
        bugged = "bugged_loss_features" in published
        horizon = jnp.float32(10) if bugged else num_steps

        def init_fn(params):
            return VeLOState(
                jnp.zeros([], jnp.int32),
                init_accumulators(params, decays, rule.layout),
                init_rows(theta["lstm_init"], state_rows(params)),
                init_loss_buffer(horizon),
                jnp.array(num_steps),
            )

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            del extra_args
            require_params(params, "velo")
            value = require_value(1.0 if constant_loss else value, "velo")
            loss, run = run_features(state.loss, value, state.count, num_steps)
            after, accumulators = state.lstm, state.accumulators
            if with_elements(updates):
                rows = tensor_features(updates, params, accumulators, run)
                rows = _with_mode(rows, validation_mode)
                after, step_sizes, networks = _hypernetwork(
                    theta, rows, state.lstm, step_mult, ff_mult
                )
                updates, accumulators = update_tree(
                    rule,
                    updates,
                    params,
                    accumulators,
                    networks,
                    step_sizes,
                    Shared(decays),
                )
            if "bugged_next_lstm_state" in published:
                after = state.lstm
            after = optax.tree.scale(1 - options["rnn_state_decay"], after)
            count = optax.safe_increment(state.count)
            return updates, VeLOState(count, accumulators, after, loss, state.num_steps)

        return transformation(init_fn, update_fn, name="velo", finite=False)

    loss = () if constant_loss else ("value",)
    needs = ("params", *loss, "num_steps")
    return LearnedOptimizer(init_theta, bind, "velo", arguments, needs)


def init_hypernetwork(
    key: jax.Array,
    inputs: int,
    lstm_hidden_size: int,
    param_inits: int,
    sizes: Sequence[int],
    *,
    mix_layers: bool,
    dead_mix_layer: bool,
) -> dict[str, Any]:
    """Theta of VeLO and Celo: an LSTM, two layers on it, and a bank of networks.

    Args:
      key: of their random weights.
      inputs: features that the LSTM sees.
      lstm_hidden_size, param_inits, mix_layers: as in `velo`.
      dead_mix_layer: whether theta holds the layer that nothing depends on.
      sizes: of the layers of each network.
    """
    keys = jax.random.split(key, 4)
    return {
        **init_mixing_lstm(
            keys[0],
            inputs,
            lstm_hidden_size,
            mix_layers=mix_layers,
            dead_mix_layer=dead_mix_layer,
        ),
        "controls": init_linear(keys[1], lstm_hidden_size, param_inits),
        "step_size": init_linear(keys[2], lstm_hidden_size, 1),
        "bank": _init_bank(keys[3], param_inits, sizes),
    }


def _init_bank(key: jax.Array, size: int, sizes: Sequence[int]) -> dict[str, jax.Array]:
    """So many independent networks, stacked along a first axis."""
    return jax.vmap(lambda k: init_mlp(k, sizes))(jax.random.split(key, size))


def _with_mode(rows: jax.Array, validation_mode: bool | None) -> jax.Array:
    """The rows, with that as a last feature unless it is None."""
    if validation_mode is None:
        return rows
    last = jnp.full((len(rows), 1), validation_mode, jnp.float32)
    return jnp.concatenate([rows, last], 1)


def _hypernetwork(
    theta: Any, rows: jax.Array, state: LSTMState, step_mult: float, ff_mult: float
) -> tuple[LSTMState, jax.Array, dict[str, jax.Array]]:
    """The LSTM's new state; per tensor `lambda_1 eta`, and W from c."""
    after = mixing_lstm(theta, rows, state)
    controls = linear(theta["controls"], after.hidden)
    step_sizes = linear(theta["step_size"], after.hidden)[:, 0] * step_mult
    return after, step_sizes, mix_bank(theta["bank"], ff_mult * controls)


def mix_bank(bank: dict[str, jax.Array], controls: jax.Array) -> dict[str, jax.Array]:
    """Per row of `controls` (rows, size) the network `mean_k(controls_k bank_k)`."""
    return {
        name: jnp.tensordot(controls, x, 1, precision=lax.Precision.HIGHEST) / len(x)
        for name, x in bank.items()
    }


def velo_rule(options: VeLOOptions) -> Rule:
    """The rule of VeLO and Celo."""
    features = check_features(options["features"])
    return Rule(
        features,
        features,
        options["exp_mult"],
        grad_bound=GRADIENT_BOUND,
        param_scale=options["param_scale_mult"],
        param_scale_bound=options["param_scale_bound"],
        precondition=options["precondition_output"],
        layout=check_layout(options["layout"]),
        holds=check_untouched(options["untouched"]),
    )


def run_features(
    buffer: LossBuffer,
    value: jax.Array,
    count: jax.Array,
    num_steps: jax.Array,
) -> tuple[LossBuffer, jax.Array]:
    """The new loss buffer, and what all tensors know: time and loss, shape (18,)."""
    buffer, loss = update_loss_buffer(buffer, value, count)
    return buffer, jnp.concatenate([fraction_embedding(count / num_steps), loss])


def tensor_feature_count(decays: Decays) -> int:
    """The size of a row of `tensor_features`."""
    spreads = len(pairs(decays.momentum, decays.rms))
    return RUN_FEATURES + len(decays.rms) + _MAX_RANK + len(decays.momentum) + spreads


def tensor_features(grads, params, accumulators, run):
    """One row per tensor with elements, from the accumulators before this step.

    `tensor_feature_count` features each, of which the first are `run`.
    """
    groups = [
        [rows_of(grads, tree) for tree in group]
        for group in (accumulators.momentum, accumulators.rms)
    ]
    momentum, rms = map(len, groups)
    tensors = rows_of(grads, params)
    arrays = [tensors, *groups[0], *groups[1]]
    mean, variance = (
        x.reshape(len(arrays), len(tensors))
        for x in mean_and_variance([x for kind in arrays for x in kind])
    )
    # All are of the parameters' own size.
    scale = lax.rsqrt(jnp.maximum(1e-9, variance[0] + mean[0] ** 2))
    mean, variance = scale * mean[1:], scale**2 * variance[1:]
    # As published, the spread of rms is taken about the mean of the momentum.
    spread = [
        variance[momentum + r] + (mean[momentum + r] - mean[m]) ** 2
        for m, r in pairs(range(momentum), range(rms))
    ]
    rank = jnp.array([sum(n > 1 for n in p.shape) for p in tensors])
    statistics = [
        _log_size(mean[momentum:].T),
        jax.nn.one_hot(rank, _MAX_RANK, dtype=jnp.float32),
        _log_size(variance[:momentum].T),
        _log_size(jnp.stack(spread, 1)),
    ]
    run = jnp.broadcast_to(run, (len(tensors), len(run)))
    return jnp.concatenate([run, *statistics], 1)


def _log_size(x):
    return 0.5 * log_magnitude(10 * x)
