"""`celo2_base`: a normalised per-parameter MLP without horizon."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_num_steps, require_params
from .._transformation import transformation
from ..kernels._dispatch import one_network, update_tree
from ..names import check_known
from ..rule._accumulators import (
    Accumulators,
    Decays,
    Factoring,
    check_factoring,
    init_accumulators,
    second_moment,
)
from ..rule._features import FEATURES, check_features, feature_sizes
from ..rule._network import init_mlp
from ..rule._newton_schulz import NS_COEFFS, NewtonSchulz
from ..rule._prior import Init, apply_init, check_init
from ..rule._rule import (
    ACTIVATIONS,
    GRADIENT_BOUND,
    Rule,
    Shared,
    Untouched,
    check_untouched,
)
from ..rule._scales import scale_limits, step_scales
from ..rule._schedule import Schedule, check_schedule, decay_of, run_length, scheduled

_EPS = 1e-9
_RMS_EPS = 1e-8
_NOT_OF_VECTORS = ("row", "col", "rsqrt_row", "rsqrt_col", "fac_m")


class Celo2BaseState(NamedTuple):
    """State of the learned rule: 16 bytes per float32 parameter of a matrix."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    limits: jax.Array | None = None  # shape (tensors,) if steps are relative
    num_steps: jax.Array | None = None  # shape (), of the run, if it has a schedule


def celo2_base(
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: float = 0.0,
    hidden_size: int = 8,
    hidden_layers: int = 2,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    rms_decays: Sequence[float] = (0.95,),
    adafactor_decays: Sequence[float] = (0.9, 0.99, 0.999),
    features: Sequence[str] = FEATURES,
    exp_mult: float = 0.0,
    rmsmult: float = 1.0,
    param_scale_mult: bool = False,
    precondition_output: bool = False,
    normalize_input: bool = True,
    normalize_output: bool = True,
    aggregate_mag: bool = False,
    bias_correction: bool = False,
    activation: Literal["relu", "tanh"] = "relu",
    orthogonalize: bool = False,
    ns_coeffs: Sequence[float] = NS_COEFFS,
    ns_iters: int = 5,
    ns_eps: float = 1e-8,
    init: Init = "random",
    schedule: Schedule = "constant",
    relative: bool = False,
    factoring: Factoring = "stable",
    untouched: Untouched = "held",
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
      hidden_size, hidden_layers: the network; 347 meta-parameters by default.
      momentum_decays, rms_decays, adafactor_decays: fixed; one accumulator each.
      features: groups of the table in `adafactor_features`.
      exp_mult: lambda. At 0, as published, the magnitude a has no effect; with
        aggregate_mag a is its mean over the tensor.
      rmsmult: factor of the normalised step.
      param_scale_mult, precondition_output: whether the step is multiplied by the
        tensor's root mean square before it is normalised, and by the inverse root of
        the second moment afterwards.
      normalize_input, normalize_output: the two normalisations.
      bias_correction: of momenta, rms, rows and columns.
      activation: between the layers.
      orthogonalize, ns_coeffs, ns_iters, ns_eps: Newton-Schulz iterations on the step
        of a tensor of two axes or more, before it is normalised.
      init: what meta-training starts from: random weights; "adam", weights with which
        the rule is Adam's direction (the first momentum over the root of the first
        second moment), normalised; "nadam", the sum of that and of the gradient over
        the same root, each normalised.
      schedule: "cosine" multiplies alpha by a warm-up over a twentieth of the run and
        a cosine to zero; `bind` then needs the length of the run.
      relative: whether steps are multiplied by s: of a matrix its root mean square, of
        a vector that of all parameters, which is also the tenfold of the least s; never
        above what s was at the start, or `1 / sqrt(fan_in)` where that is more. Alpha
        is then about 0.03 for models of all kinds.
      factoring: which of several axes of one size counts as the larger, see
        `factored_axes`.
      untouched: what becomes of entries that have had no gradient: "held", they only
        decay, or "pushed" by the network, as published. The root mean square of a step
        is that of the other entries.

    Raises:
      ValueError: decays that cannot be paired; unknown features, activation, init,
        schedule or untouched; `update` called without `params`; no `num_steps` for a
        schedule.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.celo2_base(learning_rate=1e-2)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Celo2: Towards learned optimization free lunch" (Moudgil et al., 2026).
    """
    arguments = checked(celo2_base, locals())
    rule, decays = make_rule(arguments, factoring=factoring)
    check_init(init, rule, hidden_size)
    check_schedule(schedule, "celo2_base", learning_rate)

    def init_theta(key):
        nn = init_celo2(key, rule, decays, hidden_size, hidden_layers)
        return {"nn": apply_init(init, nn, rule, decays)}

    def bind(theta, *, num_steps=None):
        if schedule == "cosine":
            num_steps = require_num_steps(num_steps, "celo2_base")

        def init_fn(params):
            accumulators = init_accumulators(params, decays, factoring)
            limits = scale_limits(params) if relative else None
            return Celo2BaseState(
                jnp.zeros([], jnp.int32),
                accumulators,
                limits,
                run_length(schedule, num_steps),
            )

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "celo2_base")
            count = optax.safe_increment(state.count)
            rate = scheduled(learning_rate, schedule, state.count, num_steps)
            scales = step_scales(
                updates, params, state.limits, second_moment(state.accumulators)
            )
            updates, accumulators = update_tree(
                rule,
                updates,
                params,
                state.accumulators,
                one_network(theta["nn"]),
                rate * rmsmult * scales,
                Shared(decays, decay_of(rate, weight_decay), None, count),
            )
            return updates, Celo2BaseState(
                count, accumulators, state.limits, state.num_steps
            )

        return transformation(
            init_fn,
            update_fn,
            name="celo2_base",
            finite=False,
            reads_params=relative,
        )

    needs: tuple[str, ...] = ("params", "learning_rate")
    if schedule == "cosine":
        needs = (*needs, "num_steps")
    return LearnedOptimizer(
        init_theta, bind, "celo2_base", arguments, needs, starts={"init": ("nn",)}
    )


def make_rule(
    arguments: Mapping[str, Any],
    *,
    factoring: Factoring,
    torch_layout: bool = False,
    gradient_bound: float = GRADIENT_BOUND,
) -> tuple[Rule, Decays]:
    """The rule of a factory's arguments, checked, and its decays."""
    check_factoring(factoring)
    check_known("activation", arguments["activation"], ACTIVATIONS)
    if len(arguments["ns_coeffs"]) != 3:
        raise ValueError(f"ns_coeffs are three numbers, got {arguments['ns_coeffs']!r}")
    kinds = ("momentum", "rms", "adafactor")
    decays = Decays(*(tuple(arguments[f"{kind}_decays"]) for kind in kinds))
    features = check_features(arguments["features"])
    feature_sizes(features, *map(len, decays))
    iterations = NewtonSchulz(
        tuple(arguments["ns_coeffs"]), arguments["ns_iters"], arguments["ns_eps"]
    )
    rule = Rule(
        features,
        tuple(name for name in features if name not in _NOT_OF_VECTORS),
        arguments["exp_mult"],
        rms_eps=_RMS_EPS,
        norm_eps=_EPS,
        grad_bound=gradient_bound,
        activation=arguments["activation"],
        normalize_input=arguments["normalize_input"],
        normalize_step=arguments["normalize_output"],
        normalized_axes="torch" if torch_layout else "last",
        param_scale=arguments["param_scale_mult"],
        precondition=arguments["precondition_output"],
        aggregate_mag=arguments["aggregate_mag"],
        orthogonalize=iterations if arguments["orthogonalize"] else None,
        bias_correction=arguments["bias_correction"],
        factoring=factoring,
        holds=check_untouched(arguments["untouched"]),
    )
    return rule, decays


def init_celo2(
    key: jax.Array, rule: Rule, decays: Decays, hidden_size: int, hidden_layers: int
) -> dict[str, jax.Array]:
    """The network's weights; those of rows and columns are not used for vectors."""
    planes = sum(feature_sizes(rule.features, *map(len, decays)))
    return init_mlp(key, [planes, *[hidden_size] * hidden_layers, 3])
