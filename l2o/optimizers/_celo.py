"""`celo`: a learned per-parameter rule under a learned schedule."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_num_steps, require_params, require_value
from .._transformation import transformation
from ..kernels._dispatch import update_tree
from ..recurrent._cell import LSTMState, init_linear, init_rows, linear
from ..recurrent._loss_features import LossBuffer, init_loss_buffer
from ..recurrent._mixing_lstm import RUN_FEATURES, init_mixing_lstm, mixing_lstm
from ..rule._accumulators import (
    Accumulators,
    Decays,
    Factoring,
    check_factoring,
    init_accumulators,
)
from ..rule._features import FEATURES, check_features, feature_sizes
from ..rule._rule import Shared, Untouched
from ._velo import init_bank, mix_bank, run_features, velo_rule

_SCHEDULE = ("lstm_init", "mix", "lstm", "controls", "step_size")


class CeloState(NamedTuple):
    """State of `celo`: 16 bytes per parameter of a matrix, and one LSTM."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    lstm: LSTMState  # shapes (1, h)
    loss: LossBuffer
    num_steps: jax.Array  # shape (), float32: of the run


def celo(
    *,
    lstm_hidden_size: int = 64,
    param_inits: int = 1,
    hidden_size: int = 4,
    hidden_layers: int = 2,
    exp_mult: float = 1e-3,
    step_mult: float = 1e-3,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    rms_decays: Sequence[float] = (0.999,),
    adafactor_decays: Sequence[float] = (0.9, 0.99, 0.999),
    features: Sequence[str] = FEATURES,
    mix_layers: bool = True,
    dead_mix_layer: bool = True,
    param_scale_mult: bool = True,
    clip_param_scale_amount: float | None = None,
    precondition_output: bool = False,
    rnn_state_decay: float = 0.0,
    validation_mode: bool | None = None,
    constant_loss: bool = False,
    train_phase: Literal[1, 2] = 2,
    factoring: Factoring = "stable",
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Per-parameter MLP whose steps a learned global schedule scales (Celo).

    .. math:: \eta = 0.1 \exp(\mathrm{LSTM}_\theta(\text{loss, time})), \quad
              (d, a) = \mathrm{MLP}_\theta(\phi), \quad
              p \leftarrow p - \eta\, \|p\|_{rms}\, \lambda_1 d\, e^{\lambda_2 a}

    The rule is that of `velo`, but the LSTM sees only what all tensors share, so that
    one row of it serves them all and the schedule is one number per step. It is
    meta-trained in two phases: first the rule without the schedule, then the schedule
    over the frozen rule. There is no learning rate to choose; `update` needs the loss
    and `bind` the length of the training run.

    Args:
      lstm_hidden_size: of the schedule; 37 089 meta-parameters by default.
      param_inits: networks in the bank, mixed by softmax; of one, as published, the
        layer `controls` has no effect.
      hidden_size, hidden_layers: the per-parameter network, relu between layers.
      exp_mult, step_mult: lambda_2 and lambda_1.
      momentum_decays, rms_decays, adafactor_decays: fixed; one accumulator each.
      features: groups of the table in `adafactor_features`.
      mix_layers, dead_mix_layer, param_scale_mult, clip_param_scale_amount,
      precondition_output, rnn_state_decay, validation_mode, constant_loss, factoring,
      untouched: as for `velo`.
      train_phase: 1 leaves the schedule out and trains the rule (`frozen` names the
        rest of theta), 2 applies it and trains it alone. Published weights need 2.

    Raises:
      ValueError: decays that cannot be paired; unknown features, phase or untouched;
        `num_steps`, `params` or `value` is missing.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.celo()
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params, value=0.5)

    Source: "Celo: Training versatile learned optimizers on a compute diet" (Moudgil et
    al., 2025).
    """
    arguments = checked(celo, locals())
    check_factoring(factoring)
    features = check_features(features)
    if train_phase not in (1, 2):
        raise ValueError(f"celo has train_phase 1 and 2, got {train_phase!r}")
    decays = Decays(tuple(momentum_decays), tuple(rms_decays), tuple(adafactor_decays))
    planes = sum(feature_sizes(features, *map(len, decays)))
    sizes = [planes, *[hidden_size] * hidden_layers, 3]
    rule = velo_rule(
        features,
        exp_mult,
        param_scale_mult,
        clip_param_scale_amount,
        precondition_output,
        factoring,
        untouched,
    )

    def init_theta(key):
        keys = jax.random.split(key, 4)
        return {
            **init_mixing_lstm(
                keys[0],
                RUN_FEATURES + (validation_mode is not None),
                lstm_hidden_size,
                mix_layers=mix_layers,
                dead_mix_layer=dead_mix_layer,
            ),
            "controls": init_linear(keys[1], lstm_hidden_size, param_inits),
            "step_size": init_linear(keys[2], lstm_hidden_size, 1),
            "bank": init_bank(keys[3], param_inits, sizes),
        }

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "celo")

        def init_fn(params):
            return CeloState(
                jnp.zeros([], jnp.int32),
                init_accumulators(params, decays, factoring),
                init_rows(theta["lstm_init"], 1),
                init_loss_buffer(num_steps),
                jnp.array(num_steps),
            )

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            del extra_args
            require_params(params, "celo")
            value = require_value(1.0 if constant_loss else value, "celo")
            loss, run = run_features(state.loss, value, state.count, num_steps)
            if validation_mode is not None:
                run = jnp.append(run, jnp.float32(validation_mode))
            after = mixing_lstm(theta, run[None], state.lstm)
            controls = jax.nn.softmax(linear(theta["controls"], after.hidden))
            network = mix_bank(theta["bank"], controls)
            step_size = schedule(theta, after) if train_phase == 2 else 1.0

            updates, accumulators = update_tree(
                rule,
                updates,
                params,
                state.accumulators,
                network,
                jnp.reshape(step_size * step_mult, 1),
                Shared(decays),
            )
            return updates, CeloState(
                optax.safe_increment(state.count),
                accumulators,
                optax.tree.scale(1 - rnn_state_decay, after),
                loss,
                state.num_steps,
            )

        return transformation(init_fn, update_fn, name="celo", finite=False)

    needs = (
        ("params", "num_steps") if constant_loss else ("params", "value", "num_steps")
    )
    schedule_keys = tuple(k for k in _SCHEDULE if mix_layers or k != "mix")
    frozen = schedule_keys if train_phase == 1 else ("bank",)
    return LearnedOptimizer(init_theta, bind, "celo", arguments, needs, frozen)


def schedule(theta: dict, state: LSTMState) -> jax.Array:
    """`0.1 exp(step_size(hidden))`, shape ()."""
    return 0.1 * jnp.exp(linear(theta["step_size"], state.hidden)[0, 0])
