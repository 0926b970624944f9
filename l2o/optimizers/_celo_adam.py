"""`celo_adam`: Celo's learned schedule as the learning rate of Adam."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_num_steps, require_params, require_value
from .._options import check_published, takes
from .._tensors import map_tensors, state_zeros
from .._transformation import transformation
from ..recurrent._cell import LSTMState, init_linear, init_rows
from ..recurrent._loss_features import LossBuffer, init_loss_buffer
from ..recurrent._mixing_lstm import RUN_FEATURES, init_mixing_lstm, mixing_lstm
from ..recurrent._options import OLD_FLAGS, SCHEDULE, ScheduleOptions
from ..rule._accumulators import update_moment
from ..rule._rule import GRADIENT_BOUND, param_scale
from ._celo import schedule
from ._velo import run_features


class CeloAdamState(NamedTuple):
    """State of `celo_adam`: 8 bytes per parameter, and one LSTM."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    momentum: Any  # tree like params
    rms: Any  # tree like params
    lstm: LSTMState  # shapes (1, h)
    loss: LossBuffer
    num_steps: jax.Array  # shape (), float32: of the run
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(SCHEDULE, old={"dead_mix_layer": OLD_FLAGS["dead_mix_layer"]})
def celo_adam(
    *,
    lstm_hidden_size: int = 64,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    step_mult: float = 1e-3,
    bias_correction: bool = True,
    param_scale_mult: bool = False,
    **options: Unpack[ScheduleOptions],
) -> LearnedOptimizer:
    r"""Adam under a learned global schedule (Celo-Adam).

    .. math:: \eta = 0.1 \exp(\mathrm{LSTM}_\theta(\text{loss, time})), \quad
              p \leftarrow p - \eta \lambda\, \hat m / (\epsilon +
              \sqrt{\hat v + 10^{-10}})

    There is no learning rate to choose; `update` needs the loss and `bind` the length
    of the training run.

    Args:
      lstm_hidden_size: of the schedule; 36 865 meta-parameters by default.
      b1, b2, eps: of Adam, fixed.
      step_mult: lambda.
      bias_correction: of both moments.
      param_scale_mult: whether a step is multiplied by the tensor's root mean square.
      **options: see `ScheduleOptions`: mix_layers on, the rest off, published
        ("dead_mix_layer",), the only defect that it had.

    Raises:
      ValueError: an unknown defect; `num_steps`, `params` or `value` is missing.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.celo_adam()
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params, value=0.5)

    Source: "Celo: Training versatile learned optimizers on a compute diet" (Moudgil et
    al., 2025).
    """
    arguments = checked(celo_adam, locals())
    check_published(options["published"], ["dead_mix_layer"])
    validation_mode = options["validation_mode"]
    constant_loss = options["constant_loss"]

    def init_theta(key):
        key, step_key = jax.random.split(key)
        return {
            **init_mixing_lstm(
                key,
                RUN_FEATURES + (validation_mode is not None),
                lstm_hidden_size,
                mix_layers=options["mix_layers"],
                dead_mix_layer="dead_mix_layer" in options["published"],
            ),
            "step_size": init_linear(step_key, lstm_hidden_size, 1),
        }

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "celo_adam")

        def init_fn(params):
            return CeloAdamState(
                jnp.zeros([], jnp.int32),
                state_zeros(params),
                state_zeros(params),
                init_rows(theta["lstm_init"], 1),
                init_loss_buffer(num_steps),
                jnp.array(num_steps),
            )

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            del extra_args
            require_params(params, "celo_adam")
            value = require_value(1.0 if constant_loss else value, "celo_adam")
            loss, run = run_features(state.loss, value, state.count, num_steps)
            if validation_mode is not None:
                run = jnp.append(run, jnp.float32(validation_mode))
            after = mixing_lstm(theta, run[None], state.lstm)
            learning_rate = step_mult * schedule(theta, after)
            count = optax.safe_increment(state.count)

            def update_tensor(grad, param, momentum, rms):
                grad = jnp.clip(grad, -GRADIENT_BOUND, GRADIENT_BOUND)
                m = update_moment(momentum[0], grad, b1)
                v = update_moment(rms[0], grad * grad, b2)
                m_hat, v_hat = m, v
                if bias_correction:
                    m_hat, v_hat = m / (1 - b1**count), v / (1 - b2**count)
                step = m_hat * (learning_rate / (eps + jnp.sqrt(v_hat + 1e-10)))
                if param_scale_mult:
                    step = step * param_scale(param)
                return -step, (m,), (v,)

            updates, (momentum,), (rms,) = map_tensors(
                update_tensor, updates, params, (state.momentum,), (state.rms,)
            )
            after = optax.tree.scale(1 - options["rnn_state_decay"], after)
            return updates, CeloAdamState(
                count, momentum, rms, after, loss, state.num_steps
            )

        return transformation(init_fn, update_fn, name="celo_adam")

    needs = (
        ("params", "num_steps") if constant_loss else ("params", "value", "num_steps")
    )
    return LearnedOptimizer(init_theta, bind, "celo_adam", arguments, needs)
