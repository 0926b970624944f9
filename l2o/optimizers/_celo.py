"""`celo`: a learned per-parameter rule under a learned schedule."""

from typing import Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_num_steps, require_params, require_value
from .._options import check_published, takes
from .._transformation import transformation
from ..kernels._dispatch import update_tree
from ..recurrent._cell import LSTMState, init_rows, linear
from ..recurrent._loss_features import LossBuffer, init_loss_buffer
from ..recurrent._mixing_lstm import RUN_FEATURES, mixing_lstm
from ..rule._accumulators import Accumulators, init_accumulators
from ..rule._options import decays_of, layer_sizes
from ..rule._rule import Shared
from ._velo import (
    OLD_VELO,
    VELO,
    VeLOOptions,
    init_hypernetwork,
    mix_bank,
    run_features,
    velo_rule,
)

_SCHEDULE = ("lstm_init", "mix", "lstm", "controls", "step_size")


class CeloState(NamedTuple):
    """State of `celo`: 16 bytes per parameter of a matrix, and one LSTM."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    lstm: LSTMState  # shapes (1, h)
    loss: LossBuffer
    num_steps: jax.Array  # shape (), float32: of the run
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


# Of the published defects it had one.
_OLD = {k: v for k, v in OLD_VELO.items() if not k.startswith("use_bugged")}


@takes(VELO, old=_OLD)
def celo(
    *,
    lstm_hidden_size: int = 64,
    param_inits: int = 1,
    step_mult: float = 1e-3,
    train_phase: Literal[1, 2] = 2,
    **options: Unpack[VeLOOptions],
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
      step_mult: lambda_1.
      train_phase: 1 leaves the schedule out and trains the rule (`frozen` names the
        rest of theta), 2 applies it and trains it alone. Published weights need 2.
      **options: see `VeLOOptions`; the defaults are those of `velo`. lambda_2 is
        exp_mult. Of the published defects it had "dead_mix_layer" alone.

    Raises:
      ValueError: decays that cannot be paired; unknown features, phase, layout,
        untouched or defect; `num_steps`, `params` or `value` is missing.

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
    if train_phase not in (1, 2):
        raise ValueError(f"celo has train_phase 1 and 2, got {train_phase!r}")
    check_published(options["published"], ["dead_mix_layer"])
    decays = decays_of(options)
    rule = velo_rule(options)
    validation_mode = options["validation_mode"]
    constant_loss = options["constant_loss"]

    def init_theta(key):
        return init_hypernetwork(
            key,
            RUN_FEATURES + (validation_mode is not None),
            lstm_hidden_size,
            param_inits,
            layer_sizes(decays, options),
            mix_layers=options["mix_layers"],
            dead_mix_layer="dead_mix_layer" in options["published"],
        )

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "celo")

        def init_fn(params):
            return CeloState(
                jnp.zeros([], jnp.int32),
                init_accumulators(params, decays, rule.layout),
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
            network = _network(theta, after)
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
                optax.tree.scale(1 - options["rnn_state_decay"], after),
                loss,
                state.num_steps,
            )

        return transformation(init_fn, update_fn, name="celo", finite=False)

    loss = () if constant_loss else ("value",)
    needs = ("params", *loss, "num_steps")
    frozen = _frozen(train_phase, options["mix_layers"])
    return LearnedOptimizer(init_theta, bind, "celo", arguments, needs, frozen)


def _frozen(train_phase: int, mix_layers: bool) -> tuple[str, ...]:
    """The parts of theta that a phase does not train."""
    schedule_keys = tuple(k for k in _SCHEDULE if mix_layers or k != "mix")
    return schedule_keys if train_phase == 1 else ("bank",)


def _network(theta: dict, state: LSTMState) -> dict[str, jax.Array]:
    """The bank mixed by softmax, with a first axis of size one."""
    controls = jax.nn.softmax(linear(theta["controls"], state.hidden))
    return mix_bank(theta["bank"], controls)


def schedule(theta: dict, state: LSTMState) -> jax.Array:
    """`0.1 exp(step_size(hidden))`, shape ()."""
    return 0.1 * jnp.exp(linear(theta["step_size"], state.hidden)[0, 0])
