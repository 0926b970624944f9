"""`learnable_muon`: a rule between Adam and Muon, the numbers of which are theta."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked, log_of
from .._axes import AxesArgument, check_axes
from .._base import LearnedOptimizer, optional_num_steps, require_params
from .._options import takes
from .._stacks import stacks_of
from .._tensors import rows_of, state_zeros
from .._transformation import transformation
from .._views import viewed
from ..rule._orthogonal import Orthogonal, check_orthogonal
from ..rule._scales import relative_scales, scale_limits
from ..rule._schedule import (
    USUAL_STEPS,
    Fall,
    next_fall,
    refuse_schedule,
    share_of_fall,
    start_fall,
    usual_length,
    warmup_cosine,
)
from ..rule._tables import remembering, table_limits
from ..wrappers._hypergradient import (
    FACTOR_STARTS,
    Factors,
    factor_theta,
    follow,
    init_factors,
)
from ..wrappers._settle import GradientSizes, follow_sizes, init_sizes, log_share
from ._muon_steps import (
    kind_of,
    moved_of,
    stacked_of,
    tensors_of,
    told_of,
    trees_of,
)

_AGREEMENT_DECAY = 0.9
Embeddings = Literal["matrix", "vector", "adagrad"]
# Of the two moments, by the bytes of all state; the last updates take two.
_MOMENTS = {
    10: (jnp.float32, jnp.float32),
    8: (jnp.bfloat16, jnp.float32),
    6: (jnp.bfloat16, jnp.bfloat16),
}


class LearnableMuonState(NamedTuple):
    """State of the rule: `state_bytes` per float32 parameter."""

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    num_steps: jax.Array  # shape (), float32: of the run, after which steps are zero
    momentum: Any  # a tree like params
    second: Any  # a tree like params
    limits: jax.Array  # shape (tensors,): largest scales of steps
    factors: Factors
    sizes: GradientSizes
    fall: Fall
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


@takes(
    old={"bound": "factor_bound"},
    absent={
        "settle": 0.0,
        "axes": "last_two",
        "embeddings": "matrix",
        "orthogonal": "newton_schulz",
        "state_bytes": 10,
    },
)
def learnable_muon(
    *,
    learning_rate: optax.ScalarOrSchedule = 0.03,
    weight_decay: float = 0.06,
    b1: float = 0.9,
    b2: float = 0.95,
    exponent: float = 0.5,
    gain: float = 20.0,
    drift: float = 1.0,
    fade: float = 0.0,
    settle: float = 2.0,
    factor_bound: float = 10.0,
    axes: AxesArgument = "inferred",
    embeddings: Embeddings = "adagrad",
    orthogonal: Orthogonal = "by_platform",
    state_bytes: Literal[10, 8, 6] = 8,
) -> LearnedOptimizer:
    r"""Orthogonalised, preconditioned momentum with every number meta-learned.

    .. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
              v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
              z = \mathrm{n}\left(\frac{m}{(v + \epsilon)^q}\right)
                + e^{\gamma}\, \mathrm{n}\left(\frac{g}{(v + \epsilon)^q}\right), \quad
              d = \mathrm{n}(\mathrm{n}(\mathrm{O}(z)) + \kappa\, \mathrm{n}(z)), \quad
              p \leftarrow p - \alpha_t (e^{r + e} s d + w p)

    with n the division by the root mean square over the matrix, O what brings singular
    values near one, s the scale of `celo2_base(relative=True)`, which
    makes steps relative to the parameters, r the factors of `hypergradient`, which
    adapt the step of every tensor on the way, and e the exponents of `settle`, which
    shorten steps where gradients vanish. Of a vector `d = e^nu n(z)`. At q = 1/2
    this orthogonalises Adam's direction, at q = 0 Muon's. With `T` the length of the
    run, `alpha_t` is `alpha e^rho (T / 1000)^h` under a warm-up over a share f of
    the run and a cosine to zero, to the power a. Gradients are cut to +-1000. Without
    `num_steps` T is 1000, and the rate stays at half of it until `cool_down`.

    Entries that have had no gradient make no step, they only decay; means are over the
    others. So what is frozen, or a row of an embedding that is not used, follows plain
    decoupled decay.

    Args:
      learning_rate: alpha, the root mean square of a step over that of the parameters.
        Its schedule is the rule's own.
      weight_decay: initial w; theta holds its logarithm, `log_decay`. Zero turns decay
        off, whatever theta holds.
      b1, b2: initial decays; theta holds the logarithms of one minus them.
      exponent: initial q.
      gain, drift, fade: initial values of those of `hypergradient`.
      settle: initial value of the power of `settle`. Zero keeps steps long however
        small gradients become.
      factor_bound: largest of its factors, the least is one over it.
      axes: which axes of a tensor are the matrix. "inferred" reads names and shapes,
        see `infer_axes`; "last_two" takes the last two and stacks the others; or a
        function or a tree as `axes_of` takes it. `describe_axes(params)` shows what is
        inferred.
      embeddings: how tables of embeddings move. "matrix" is as any matrix, "vector" in
        the direction before O. "adagrad" does so with v the mean of squares since the
        beginning: a row that is seldom seen takes longer steps. There s is at most the
        table's root mean square at the start or 1 / sqrt(width).
      orthogonal: O. "rational" needs two inverses, "newton_schulz" is the five
        iterations of Muon in float32 and "newton_schulz_bf16" in bfloat16.
        "by_platform" is the first on CPUs and the last on accelerators.
      state_bytes: of state per float32 parameter. 10 keeps both moments in float32, 8
        the momentum in bfloat16, and 6 both, but for tables under "adagrad".
        Files of orbax and flax know bfloat16; those of NumPy do not.

    The other parts of theta begin at rho = 0 (`log_rate`), h = 0 (`horizon`), gamma = 0
    (`log_gradient`), kappa = 0 (`plain`), nu = 0 (`log_vectors`), f = 0.05
    (`log_warmup`) and a = 1 (`log_power`): with those of `hypergradient` 15
    meta-parameters.

    Raises:
      ValueError: a number out of range; `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.learnable_muon()
      >>> theta = optimizer.init_theta(jax.random.key(0))
      >>> tx = optimizer.bind(theta, num_steps=1000)
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: this project's, of parts of "Muon: An optimizer for hidden layers in neural
    networks" (Jordan et al., 2024), "Celo2: Towards learned optimization free lunch"
    (Moudgil et al., 2026) and "Online learning rate adaptation with hypergradient
    descent" (Baydin et al., 2018).
    """
    arguments = checked(learnable_muon, locals())
    if factor_bound < 1:
        raise ValueError(
            f"learnable_muon needs factor_bound to be at least 1, got {factor_bound}"
        )
    check_axes("learnable_muon", axes)
    if embeddings not in get_args(Embeddings):
        raise ValueError(
            "learnable_muon needs embeddings to be 'matrix', 'vector' or 'adagrad', "
            f"got {embeddings!r}"
        )
    check_orthogonal("learnable_muon", orthogonal)
    if state_bytes not in _MOMENTS:
        raise ValueError(
            f"learnable_muon needs state_bytes to be 10, 8 or 6, got {state_bytes!r}"
        )
    refuse_schedule("learnable_muon", learning_rate)
    weight_decay = arguments["weight_decay"]  # a plain number, or traced
    decays = isinstance(weight_decay, jax.Array) or weight_decay > 0
    starting_decay = weight_decay if decays else 1.0

    def init_theta(key):
        del key  # the start is not random
        return {
            "learned": _init_learned(starting_decay, b1, b2, exponent, settle),
            **factor_theta(log_of("learnable_muon", "gain", gain), drift, fade),
        }

    def bind(theta, *, num_steps=None):
        num_steps = optional_num_steps(num_steps, "learnable_muon")
        length = usual_length(num_steps)
        alpha = _peak(theta["learned"], learning_rate, length)

        def init_fn(params, widths):
            tensors = rows_of(params, params)
            momentum, second = _MOMENTS[state_bytes]
            return LearnableMuonState(
                jnp.zeros([], jnp.int32),
                jnp.array(num_steps),
                state_zeros(params, widest=momentum),
                _second_zeros(params, widths, second),
                table_limits(scale_limits(params), tensors, widths),
                init_factors(params),
                init_sizes(params),
                start_fall(),
            )

        def update_fn(updates, state, params=None, *, widths, **extra_args):
            del extra_args
            require_params(params, "learnable_muon")
            warmup = jnp.exp(theta["learned"]["log_warmup"])
            share = share_of_fall(state, num_steps, warmup)
            endless = state.fall.asked | jnp.isinf(num_steps)
            rate = alpha * warmup_cosine(
                state.count,
                num_steps,
                warmup=warmup,
                power=jnp.exp(theta["learned"]["log_power"]),
                share=share,
            )
            tensors = tensors_of(updates, params, state)
            if not tensors:
                count = optax.safe_increment(state.count)
                fall = next_fall(state, share)
                return updates, state._replace(count=count, fall=fall)
            kinds = [
                (width, *kind_of(x)) for width, x in zip(widths, tensors, strict=True)
            ]
            grads = [x.grad for x in tensors]
            stacks = stacks_of(grads, kinds)
            stacked = [stacked_of(stack, tensors) for stack in stacks]
            told = told_of(stacks, stacked)
            factors = follow(
                theta,
                state.factors,
                told.cosine,
                told.idle,
                jnp.where(endless, share, state.count / num_steps),
                length,
                decay=_AGREEMENT_DECAY,
                bounds=(1 / factor_bound, factor_bound),
            )
            sizes = follow_sizes(state.sizes, told.size, _AGREEMENT_DECAY)
            longer = factors.log_factors + log_share(theta["learned"]["settle"], sizes)
            scales, _ = relative_scales(told.scale, grads, told.trained)
            scales = rate * jnp.minimum(scales, state.limits) * jnp.exp(longer)
            numbers = theta["learned"], remembering(theta["learned"], state.count)
            each = [numbers[widths[stack.members[0]] > 0] for stack in stacks]
            decay = rate * jnp.exp(theta["learned"]["log_decay"]) if decays else None
            moved = moved_of(stacks, stacked, each, scales, decay, orthogonal)
            updates, momentum, second, last = trees_of(updates, state, stacks, moved)
            return updates, LearnableMuonState(
                optax.safe_increment(state.count),
                state.num_steps,
                momentum,
                second,
                state.limits,
                factors._replace(last=last),
                sizes,
                next_fall(state, share),
            )

        def make(params, widths):
            """Of the tensors with elements, and what of them has a rule of its own."""
            own = embeddings == "adagrad"
            leaves = zip(jax.tree.leaves(params), widths, strict=True)
            widths = [width if own else 0 for x, width in leaves if x.size]
            return optax.GradientTransformationExtraArgs(
                functools.partial(init_fn, widths=widths),
                functools.partial(update_fn, widths=widths),
            )

        tables = embeddings == "matrix"
        seen = viewed(make, axes, tables=tables, map_state=_map_state)
        return transformation(
            seen.init,
            seen.update,
            name="learnable_muon",
            reads_params=True,
            finite=False,
        )

    starts = {
        "b1": ("learned/log_one_minus_b1",),
        "b2": ("learned/log_one_minus_b2",),
        "exponent": ("learned/exponent",),
        "settle": ("learned/settle",),
        "weight_decay": ("learned/log_decay",) if decays else (),
        **FACTOR_STARTS,
    }
    needs = ("params", "learning_rate")
    return LearnedOptimizer(
        init_theta, bind, "learnable_muon", arguments, needs, starts=starts
    )


def _map_state(
    f: Callable[[Any], Any], state: LearnableMuonState
) -> LearnableMuonState:
    """The state with f of what is a tree like params."""
    return state._replace(
        momentum=f(state.momentum),
        second=f(state.second),
        factors=state.factors._replace(last=f(state.factors.last)),
    )


def _second_zeros(params: Any, widths: Sequence[int], widest: Any) -> Any:
    """Of a table in float32: what hardly changes would not change in bfloat16."""
    wide = iter(widths)
    structure: Any = jax.tree.structure(params)
    zeros = [
        state_zeros(p, widest=jnp.float32 if p.size and next(wide) else widest)
        for p in jax.tree.leaves(params)
    ]
    return structure.unflatten(zeros)


def _init_learned(
    weight_decay: Any, b1: float, b2: float, exponent: float, settle: float
) -> dict[str, jax.Array]:
    """The numbers of the rule at the start, without those of `hypergradient`."""
    start = {
        "exponent": exponent,
        "horizon": 0.0,
        "log_decay": log_of("learnable_muon", "weight_decay", weight_decay),
        "log_gradient": 0.0,
        "log_one_minus_b1": math.log1p(-b1),
        "log_one_minus_b2": math.log1p(-b2),
        "log_power": 0.0,
        "log_rate": 0.0,
        "log_vectors": 0.0,
        "log_warmup": math.log(0.05),
        "plain": 0.0,
        "settle": settle,
    }
    return jax.tree.map(jnp.float32, start)


def _peak(numbers: Any, learning_rate: Any, num_steps: jax.Array) -> jax.Array:
    """The largest rate of the run, `alpha e^rho (T / 1000)^h`."""
    horizon = numbers["horizon"] * jnp.log(num_steps / USUAL_STEPS)
    return learning_rate * jnp.exp(numbers["log_rate"] + horizon)
