"""`normalized_velo`: the normalised rule of Celo2 under a scheduler like VeLO's."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_num_steps, require_params, require_value
from .._options import takes
from .._tensors import rows_of, state_rows, with_elements
from .._transformation import transformation
from ..kernels._dispatch import one_network, update_tree
from ..recurrent._cell import LSTMState, init_rows, linear
from ..recurrent._loss_features import LossBuffer, init_loss_buffer
from ..recurrent._mixing_lstm import init_mixing_lstm, mixing_lstm
from ..rule._accumulators import Accumulators, init_accumulators, second_moment
from ..rule._network import init_mlp
from ..rule._options import CELO2, Celo2Options, layer_sizes
from ..rule._prior import Init, apply_init, check_init
from ..rule._rule import Shared
from ..rule._scales import parameter_scales, scale_limits, trained
from ..rule._schedule import decay_of, warmup_cosine
from ._celo2_base import NEW_CELO2, OLD_CELO2, make_rule
from ._velo import (
    run_features,
    tensor_feature_count,
    tensor_features,
)


class NormalizedVeLOState(NamedTuple):
    """State of `normalized_velo`: 16 bytes per parameter of a matrix, 8h per tensor."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    lstm: LSTMState  # shapes (tensors, h)
    loss: LossBuffer
    limits: jax.Array  # shape (tensors,)
    num_steps: jax.Array  # shape (), float32: of the run
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(CELO2, old={"factoring": OLD_CELO2["factoring"]}, absent=NEW_CELO2)
def normalized_velo(
    *,
    step_mult: float = 0.01,
    weight_decay: float = 0.0,
    schedule_mult: float = 4.0,
    lstm_hidden_size: int = 16,
    init: Init = "random",
    **options: Unpack[Celo2Options],
) -> LearnedOptimizer:
    r"""Celo2's normalised rule, times a learned rate per tensor; nothing to tune.

    .. math:: p \leftarrow p - \lambda\, w(t/T)\,(
              \exp(\kappa\,\mathrm{LSTM}_\theta(\text{tensor, loss, time}))\,
              s\,\mathrm{normalise}(\mathrm{MLP}_\theta(\mathrm{normalise}(\phi)))
              + d p)

    The rule is that of `celo2_base`, so that the root mean square of a step is the
    rate alone. That is the product of a warm-up and cosine w, of what the LSTM, a row
    per tensor with the features of `velo`, makes of it, and of the scale s: of a
    matrix its root mean square, of a vector, which may well begin at zero, that of all
    parameters together. So steps follow if all parameters are scaled. For what begins
    at zero s is at least a tenth of that of all, and that at least 0.001. The last
    layer begins at zero: with init "adam" this is, before any meta-training, a
    normalised Adam with a schedule.

    Args:
      step_mult: lambda, the root mean square of a step relative to s at the peak.
      weight_decay: d.
      schedule_mult: kappa; an output of 0.1 changes the rate by 49 % at 4.
      lstm_hidden_size: of the scheduler; 3 532 meta-parameters by default.
      init: of the rule, as for `celo2_base`.
      **options: see `Celo2Options`; the defaults are those of `celo2_base`.

    Raises:
      ValueError: decays that cannot be paired; unknown features, activation, init,
        layout or untouched; `num_steps`, `params` or `value` is missing.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.normalized_velo()
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params, value=0.5)

    Source: this project, from parts of "Celo2: Towards learned optimization free lunch"
    (Moudgil et al., 2026) and "VeLO: Training versatile learned optimizers by scaling
    up" (Metz et al., 2022).
    """
    arguments = checked(normalized_velo, locals())
    rule, decays = make_rule(options)
    check_init(init, rule, options["hidden_size"])

    def init_theta(key):
        k_nn, k_lstm = jax.random.split(key)
        nn = init_mlp(k_nn, layer_sizes(decays, options))
        schedule = init_mixing_lstm(
            k_lstm,
            tensor_feature_count(decays) + 1,
            lstm_hidden_size,
            mix_layers=True,
            dead_mix_layer=False,
        )
        return {
            "nn": apply_init(init, nn, rule, decays),
            **schedule,
            "step_size": {
                "w": jnp.zeros((lstm_hidden_size, 1), jnp.float32),
                "b": jnp.zeros(1, jnp.float32),
            },
        }

    def bind(theta, *, num_steps=None):
        num_steps = require_num_steps(num_steps, "normalized_velo")

        def init_fn(params):
            return NormalizedVeLOState(
                jnp.zeros([], jnp.int32),
                init_accumulators(params, decays, rule.layout),
                init_rows(theta["lstm_init"], state_rows(params)),
                init_loss_buffer(num_steps),
                scale_limits(params),
                jnp.array(num_steps),
            )

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            del extra_args
            require_params(params, "normalized_velo")
            value = require_value(value, "normalized_velo")
            loss, run = run_features(state.loss, value, state.count, num_steps)
            after, accumulators = state.lstm, state.accumulators
            count = optax.safe_increment(state.count)
            if with_elements(updates):
                rows = tensor_features(updates, params, state.accumulators, run)
                scales, relative = parameter_scales(
                    rows_of(updates, params),
                    trained(updates, second_moment(state.accumulators)),
                )
                scales = jnp.minimum(scales, state.limits)
                rows = jnp.concatenate([rows, relative[:, None]], 1)
                after = mixing_lstm(theta, rows, state.lstm)
                learned = linear(theta["step_size"], after.hidden)[:, 0]
                peak = step_mult * warmup_cosine(state.count, num_steps)
                updates, accumulators = update_tree(
                    rule,
                    updates,
                    params,
                    state.accumulators,
                    one_network(theta["nn"]),
                    peak * jnp.exp(schedule_mult * learned) * scales,
                    Shared(decays, decay_of(peak, weight_decay), None, count),
                )
            return updates, NormalizedVeLOState(
                count, accumulators, after, loss, state.limits, state.num_steps
            )

        return transformation(
            init_fn,
            update_fn,
            name="normalized_velo",
            finite=False,
            reads_params=True,
        )

    needs = ("params", "value", "num_steps")
    return LearnedOptimizer(
        init_theta, bind, "normalized_velo", arguments, needs, starts={"init": ("nn",)}
    )
