"""`celo2_base`: a normalised per-parameter MLP without horizon."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, optional_num_steps, require_params
from .._options import takes
from .._transformation import transformation
from ..kernels._dispatch import one_network, update_tree
from ..names import check_known
from ..rule._accumulators import (
    Accumulators,
    Decays,
    check_layout,
    init_accumulators,
    second_moment,
)
from ..rule._features import check_features, feature_sizes
from ..rule._network import init_mlp
from ..rule._newton_schulz import NewtonSchulz, Precision
from ..rule._options import (
    CELO2,
    Celo2Options,
    decays_of,
    from_factoring,
    layer_sizes,
)
from ..rule._prior import Init, apply_init, check_init
from ..rule._rule import (
    ACTIVATIONS,
    GRADIENT_BOUND,
    Rule,
    Shared,
    check_untouched,
)
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

_EPS = 1e-9
_RMS_EPS = 1e-8
_NOT_OF_VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col", "fac_m")


class Celo2BaseState(NamedTuple):
    """State of the learned rule: 16 bytes per float32 parameter of a matrix."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    limits: jax.Array | None = None  # shape (tensors,) if steps are relative
    num_steps: jax.Array | None = None  # shape (), of the run, if it has a schedule
    fall: Fall | None = None  # of a schedule
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


def _from_factoring(arguments: dict[str, Any], value: Any) -> None:
    """layout"""
    from_factoring(arguments, value)
    torch = str(value).startswith("torch")
    if torch and arguments.get("variant") != "pylo":
        raise ValueError(
            f"factoring {value!r} decided about rows and columns alone; layout "
            f"{value!r} normalises the last two of (out, in, ...) too: choose that or "
            "layout 'jax'"
        )


OLD_CELO2: Mapping[str, Any] = {"rmsmult": "step_mult", "factoring": _from_factoring}
# Of files from before there was such an argument.
NEW_CELO2: Mapping[str, Any] = {"ns_precision": "by_platform"}


@takes(CELO2, old=OLD_CELO2, absent=NEW_CELO2)
def celo2_base(
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: float = 0.0,
    step_mult: float = 1.0,
    init: Init = "random",
    schedule: Schedule = "constant",
    relative: bool = False,
    **options: Unpack[Celo2Options],
) -> LearnedOptimizer:
    r"""Per-parameter MLP whose steps have unit root mean square (Celo2-base).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi)), \quad
              p \leftarrow p - \alpha\,(s\,\mathrm{normalise}(d e^{\lambda a}) + w p)

    The features phi are those of `adafactor_features` (a vector has no rows and
    columns), normalised like the step over the last two axes: a convolution's kernel
    (height, width, in, out) for each of its taps. Gradients are cut to +-1000. Neither
    the loss nor the length of the run is needed, but a learning rate is. s is 1
    unless `relative`.

    Args:
      learning_rate: alpha, the root mean square of a step; a number, or an optax
        schedule of the number of updates made.
      weight_decay: w.
      step_mult: factor of the normalised step.
      init: what meta-training starts from: random weights; "adam", weights with which
        the rule is Adam's direction (the first momentum over the root of the first
        second moment), normalised; "nadam", the sum of that and of the gradient over
        the same root, each normalised.
      schedule: "cosine" multiplies alpha by a warm-up over a twentieth of the run and
        a cosine to zero. Without the length of the run it is multiplied by a
        half, after 50 steps of warm-up, until `cool_down`.
      relative: whether steps are multiplied by s: of a matrix its root mean square, of
        a vector that of all parameters, which is also the tenfold of the least s; never
        above what s was at the start, or `1 / sqrt(fan_in)` where that is more. Alpha
        is then about 0.03 for models of all kinds.
      **options: see `Celo2Options`: hidden_size 8 and hidden_layers 2, 347
        meta-parameters; lambda, exp_mult, 0, so that the magnitude a has no effect;
        momentum_decays (0.9, 0.99, 0.999), rms_decays (0.95,) and adafactor_decays
        (0.9, 0.99, 0.999), fixed; all features; normalize_input and normalize_output
        on, param_scale_mult (before the step is normalised), precondition_output
        (afterwards), aggregate_mag, bias_correction and orthogonalize off; activation
        "relu"; ns_iters 5; ns_precision "by_platform"; layout "jax"; untouched "held".
        The root mean square of a step is that of the entries that are not held.

    Raises:
      ValueError: decays that cannot be paired; unknown features, activation, init,
        schedule, layout or untouched; `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.celo2_base(learning_rate=1e-2)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Celo2: Towards learned optimization free lunch" (Moudgil et al., 2026).
    """
    arguments = checked(celo2_base, locals())
    rule, decays = make_rule(options)
    check_init(init, rule, options["hidden_size"])
    check_schedule(schedule, "celo2_base", learning_rate)

    def init_theta(key):
        nn = init_mlp(key, layer_sizes(decays, options))
        return {"nn": apply_init(init, nn, rule, decays)}

    def bind(theta, *, num_steps=None):
        if schedule == "cosine":
            num_steps = optional_num_steps(num_steps, "celo2_base")

        def init_fn(params):
            accumulators = init_accumulators(params, decays, rule.layout)
            limits = scale_limits(params) if relative else None
            return Celo2BaseState(
                jnp.zeros([], jnp.int32),
                accumulators,
                limits,
                run_length(schedule, num_steps),
                run_fall(schedule),
            )

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "celo2_base")
            count = optax.safe_increment(state.count)
            rate, fall = scheduled(learning_rate, schedule, state, num_steps)
            scales = step_scales(
                updates, params, state.limits, second_moment(state.accumulators)
            )
            updates, accumulators = update_tree(
                rule,
                updates,
                params,
                state.accumulators,
                one_network(theta["nn"]),
                rate * step_mult * scales,
                Shared(decays, decay_of(rate, weight_decay), None, count),
            )
            return updates, Celo2BaseState(
                count, accumulators, state.limits, state.num_steps, fall
            )

        return transformation(
            init_fn,
            update_fn,
            name="celo2_base",
            finite=False,
            reads_params=relative,
        )

    needs = ("params", "learning_rate")
    return LearnedOptimizer(
        init_theta, bind, "celo2_base", arguments, needs, starts={"init": ("nn",)}
    )


def make_rule(
    options: Celo2Options, *, gradient_bound: float = GRADIENT_BOUND
) -> tuple[Rule, Decays]:
    """The rule that options describe, checked, and its decays."""
    layout = check_layout(options["layout"])
    check_known("activation", options["activation"], ACTIVATIONS)
    if len(options["ns_coeffs"]) != 3:
        raise ValueError(f"ns_coeffs are three numbers, got {options['ns_coeffs']!r}")
    a, b, c = options["ns_coeffs"]
    decays = decays_of(options)
    features = check_features(options["features"])
    feature_sizes(features, *map(len, decays))
    check_known("ns_precision", options["ns_precision"], get_args(Precision))
    iterations = NewtonSchulz(
        (a, b, c), options["ns_iters"], options["ns_eps"], options["ns_precision"]
    )
    rule = Rule(
        features,
        tuple(name for name in features if name not in _NOT_OF_VECTORS),
        options["exp_mult"],
        rms_eps=_RMS_EPS,
        norm_eps=_EPS,
        grad_bound=gradient_bound,
        activation=options["activation"],
        normalize_input=options["normalize_input"],
        normalize_step=options["normalize_output"],
        normalized_axes="torch" if layout.startswith("torch") else "last",
        param_scale=options["param_scale_mult"],
        precondition=options["precondition_output"],
        aggregate_mag=options["aggregate_mag"],
        orthogonalize=iterations if options["orthogonalize"] else None,
        bias_correction=options["bias_correction"],
        layout=layout,
        holds=check_untouched(options["untouched"]),
    )
    return rule, decays
