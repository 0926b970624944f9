"""`small_fc`: the small per-parameter MLP on Adafactor features (small_fc_lopt)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, optional_num_steps, require_params
from .._options import takes
from .._transformation import transformation
from ..kernels._dispatch import one_network, update_tree
from ..rule._accumulators import (
    Accumulators,
    Decays,
    check_layout,
    init_accumulators,
    second_moment,
)
from ..rule._features import (
    SMALL_FC_FEATURES,
    TIME_SCALES,
    feature_sizes,
    time_embedding,
)
from ..rule._network import init_mlp
from ..rule._options import NETWORK, NetworkOptions, decays_of, from_factoring
from ..rule._prior import Init, apply_init, check_init
from ..rule._rule import Rule, Shared, check_untouched
from ..rule._scales import scale_limits, step_scales
from ..rule._schedule import (
    Fall,
    Schedule,
    check_schedule,
    decay_of,
    run_fall,
    run_length,
    scheduled,
)

_DECAY_SCALE = 10.0  # theta's decay offsets act tenfold in log(1 - decay)


class SmallFCState(NamedTuple):
    """State of `small_fc`: 16 bytes per float32 parameter of a matrix by default."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    limits: jax.Array | None = None  # shape (tensors,) if steps are relative
    num_steps: jax.Array | None = None  # shape (), of the run, if it has a schedule
    fall: Fall | None = None  # of a schedule
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(NETWORK, old={"factoring": from_factoring}, absent={"weight_decay": 0.0})
def small_fc(
    *,
    step_mult: float = 1e-3,
    weight_decay: float = 0.0,
    init: Init = "random",
    schedule: Schedule = "constant",
    relative: bool = False,
    **options: Unpack[NetworkOptions],
) -> LearnedOptimizer:
    r"""Per-parameter MLP over 28 Adafactor-like features and time (small_fc_lopt).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi(g, p, m, v)),
              \tau(t)), \quad p \leftarrow p - \lambda_1 w\,
              (s\, d\, e^{\lambda_2 a} + v p)

    The features phi are listed in `adafactor_features`; each is divided by its root
    mean square over the tensor. As published w and s are 1 and v is 0. The
    accumulators' decays are meta-learned too: `1 - (1 - d) exp(10 x)` with x in theta.
    There is no learning rate to choose.

    Args:
      step_mult: lambda_1.
      weight_decay: v.
      init: what meta-training starts from: random weights, or "adam", weights with
        which d is Adam's direction (the first momentum over the root of the second
        moment), normalised.
      schedule: "cosine" makes w a warm-up over a twentieth of the run and a cosine to
        zero. Without the length of the run w rises to a half over 50 steps and stays,
        until `cool_down`.
      relative: makes s, of a matrix, its root mean square, of a vector that of all
        parameters, but no more than at the start, as `celo2_base` does.
      **options: see `NetworkOptions`: hidden_size 4 and hidden_layers 2, relu between
        layers, 197 meta-parameters; lambda_2, exp_mult, 0.001; initial decays d,
        momentum_decays (0.9, 0.99, 0.999), rms_decays (0.999,) and adafactor_decays
        (0.9, 0.99, 0.999); layout "jax"; untouched "held". The published code has
        layout "jax_native", which depends on the machine, and untouched "pushed".

    Raises:
      ValueError: decays that cannot be paired; unknown init, schedule or untouched;
        `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.small_fc()
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Practical tradeoffs between memory, compute, and performance in learned
    optimizers" (Metz et al., 2022).
    """
    arguments = checked(small_fc, locals())
    decays = decays_of(options)
    sizes = small_fc_sizes(decays, options)
    rule = small_fc_rule(options)
    check_init(init, rule, options["hidden_size"])
    check_schedule(schedule, "small_fc")

    def init_theta(key):
        nn = apply_init(init, init_mlp(key, sizes), rule, decays)
        return {**init_decay_offsets(decays), "nn": nn}

    def bind(theta, *, num_steps=None):
        if schedule == "cosine":
            num_steps = optional_num_steps(num_steps, "small_fc")
        return small_fc_transformation(
            rule,
            theta["nn"],
            learned_decays(decays, theta),
            step_mult=step_mult,
            weight_decay=weight_decay,
            schedule=schedule,
            num_steps=num_steps,
            relative=relative,
            name="small_fc",
        )

    return LearnedOptimizer(
        init_theta, bind, "small_fc", arguments, ("params",), starts={"init": ("nn",)}
    )


def small_fc_sizes(decays: Decays, options: NetworkOptions) -> list[int]:
    """Layer sizes of the network over the features and time."""
    planes = sum(feature_sizes(SMALL_FC_FEATURES, *map(len, decays)))
    hidden = [options["hidden_size"]] * options["hidden_layers"]
    return [planes + len(TIME_SCALES), *hidden, 2]


def init_decay_offsets(decays: Decays) -> dict[str, jax.Array]:
    """Zeros: the offsets x in theta with which decays are learned."""
    names = ("momentum_decays", "rms_decays", "adafactor_decays")
    return {
        name: jnp.zeros(len(group), jnp.float32)
        for name, group in zip(names, decays, strict=True)
    }


def learned_decays(initial: Decays, theta: Any) -> Decays:
    """`1 - (1 - d) exp(10 x)`; but for those of momenta clipped to [0, 1]."""

    def shifted(group, offset):
        one_minus = 1 - jnp.asarray(group, jnp.float32)
        return 1 - one_minus * jnp.exp(_DECAY_SCALE * offset)

    return Decays(
        # As published: momentum decays may turn negative, the others may not.
        shifted(initial.momentum, theta["momentum_decays"]),
        jnp.clip(shifted(initial.rms, theta["rms_decays"]), 0, 1),
        jnp.clip(shifted(initial.second, theta["adafactor_decays"]), 0, 1),
    )


def small_fc_rule(options: NetworkOptions, published: Sequence[str] = ()) -> Rule:
    """What its network sees, and how what it says becomes a step."""
    return Rule(
        SMALL_FC_FEATURES,
        SMALL_FC_FEATURES,
        options["exp_mult"],
        vector_eps=1e-6,
        fused_row_mean="fused_row_mean" in published,
        layout=check_layout(options["layout"]),
        holds=check_untouched(options["untouched"]),
    )


def small_fc_transformation(
    rule: Rule,
    nn: Any,
    decays: Decays,
    *,
    step_mult: optax.ScalarOrSchedule,
    name: str,
    schedule: Schedule = "constant",
    num_steps: Any = None,
    relative: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The rule of `small_fc` for given weights and decays.

    Args:
      step_mult: the rate of steps; `weight_decay` is multiplied by it.
    """

    def init_fn(params):
        accumulators = init_accumulators(params, decays, rule.layout)
        limits = scale_limits(params) if relative else None
        return SmallFCState(
            jnp.zeros([], jnp.int32),
            accumulators,
            limits,
            run_length(schedule, num_steps),
            run_fall(schedule),
        )

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        require_params(params, name)
        rate, fall = scheduled(step_mult, schedule, state, num_steps)
        time = time_embedding(state.count)
        shared = Shared(decays, decay_of(rate, weight_decay), time)
        updates, accumulators = update_tree(
            rule,
            updates,
            params,
            state.accumulators,
            one_network(nn),
            rate
            * step_scales(
                updates, params, state.limits, second_moment(state.accumulators)
            ),
            shared,
        )
        count = optax.safe_increment(state.count)
        return updates, SmallFCState(
            count, accumulators, state.limits, state.num_steps, fall
        )

    return transformation(
        init_fn, update_fn, name=name, finite=False, reads_params=relative
    )
