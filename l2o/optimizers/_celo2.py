"""`celo2`: Celo2-base on orthogonalised matrices, Adam on vectors and embeddings."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._options import takes
from .._tensors import (
    clip_by_global_norm,
    finite_gradient,
    map_together,
    square_root,
    state_zeros,
)
from .._transformation import transformation
from ..kernels._dispatch import one_network, update_tensors
from ..names import check_known
from ..rule._accumulators import (
    Accumulators,
    Decays,
    Layout,
    init_accumulators,
    update_moment,
)
from ..rule._network import init_mlp
from ..rule._options import CELO2, Celo2Options, layer_sizes
from ..rule._rule import Rule, Shared, Tensor
from ..rule._schedule import decay_of, rate_at
from ._celo2_base import NEW_CELO2, OLD_CELO2, make_rule

REGEX_1D = r".*bias.*|.*embed.*"


class Celo2State(NamedTuple):
    """State of `celo2`: 16 bytes per parameter of a matrix, 8 where Adam is used.

    Each tree has one array per parameter; where the other rule is used, that is a zero
    of shape (1,).
    """

    count: jax.Array  # type: ignore[assignment]  # shape (), int32: updates made
    accumulators: Accumulators
    momentum: Any  # tree like params: Adam's
    rms: Any  # tree like params: Adam's
    skipped: jax.Array | None = None  # shape (), int32: steps without an update


class _Variant(NamedTuple):
    """Where the two published forms differ."""

    mult_1d: float
    adam_bias_correction: bool
    routes_vectors: bool
    eps_in_root: bool
    bounds_adam: bool
    layout: Layout


_VARIANTS = {
    "jax": _Variant(20.0, False, False, True, False, "jax"),
    "pylo": _Variant(1.0, True, True, False, True, "torch"),
}


class _Adam(NamedTuple):
    """The rule of vectors and embeddings."""

    b1: float
    b2: float
    eps: float
    eps_in_root: bool
    corrects: bool  # the moments' start at zero
    bound: float | None  # of gradients
    mult: float
    weight_decay: float


@takes(
    {**CELO2, "orthogonalize": True, "layout": None}, old=OLD_CELO2, absent=NEW_CELO2
)
def celo2(
    *,
    variant: Literal["jax", "pylo"] = "jax",
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: float = 0.0,
    regex_1d: str | None = REGEX_1D,
    mult_1d: float | None = None,
    weight_decay_1d: float | None = None,
    adam_b1: float = 0.9,
    adam_b2: float = 0.95,
    adam_eps: float = 1e-8,
    adam_bias_correction: bool | None = None,
    max_norm: float | None = None,
    gradient_bound: float = 1000.0,
    step_mult: float = 1.0,
    **options: Unpack[Celo2Options],
) -> LearnedOptimizer:
    r"""Learned rule with orthogonal steps for matrices, Adam for the rest (Celo2).

    .. math:: p \leftarrow p - \alpha\,(\mathrm{normalise}(\mathrm{NS}(d)) + w p)
              \quad\text{or}\quad
              p \leftarrow p - \mu \alpha\,(m / \sqrt{v + \epsilon} + w p)

    The first is the rule of `celo2_base` with Newton-Schulz iterations NS, the second
    is for parameters whose path matches `regex_1d`. In the "pylo" variant it is
    `m^ / (sqrt(v^) + eps)`.

    | | "jax", with the paper | "pylo", in PyTorch |
    |---|---|---|
    | Adam's biases | not corrected | corrected |
    | Adam's epsilon | in the root | outside |
    | mu | 20 | 1 |
    | to Adam go | paths that match | those, vectors and scalars |
    | cut to +-1000 | all but Adam's gradients | all gradients |
    | layout | "jax" | "torch" |

    The last two of (out, in, height, width) are a convolution's height and width.

    Args:
      variant: sets what the table lists; parameters are (..., in, out) in both.
      learning_rate, weight_decay: alpha, a number or an optax schedule of the number of
        updates made, and w.
      regex_1d: searched in a parameter's path, keys joined by `/`; None, or an empty
        one, sends nothing to Adam. The published meta-training has "/b$".
      mult_1d, weight_decay_1d: mu, and Adam's w where it differs.
      adam_b1, adam_b2, adam_eps, adam_bias_correction: of Adam.
      max_norm: bound of the global norm of the gradients; None for none.
      gradient_bound: gradients are cut to it.
      step_mult: factor of the normalised step.
      **options: see `Celo2Options`; the defaults are those of `celo2_base`, but
        orthogonalize is on and layout None, which is the variant's. Adam pushes no
        entries that have had no gradient.

    Raises:
      ValueError: decays that cannot be paired; unknown features, activation, variant,
        layout or untouched; `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.celo2(learning_rate=1e-2, weight_decay=0.1)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "Celo2: Towards learned optimization free lunch" (Moudgil et al., 2026);
    "PyLO: Towards accessible learned optimizers in PyTorch" (Janson et al., 2025).
    """
    arguments = checked(celo2, locals())
    check_known("variant", variant, _VARIANTS)
    form = _VARIANTS[variant]
    pattern = re.compile(regex_1d) if regex_1d else None
    adam = _Adam(
        b1=adam_b1,
        b2=adam_b2,
        eps=adam_eps,
        eps_in_root=form.eps_in_root,
        corrects=_or(adam_bias_correction, form.adam_bias_correction),
        bound=gradient_bound if form.bounds_adam else None,
        mult=_or(mult_1d, form.mult_1d),
        weight_decay=_or(weight_decay_1d, weight_decay),
    )
    layout = _or(options["layout"], form.layout)
    rule, decays = make_rule(
        {**options, "layout": layout}, gradient_bound=gradient_bound
    )

    to_adam = functools.partial(goes_to_adam, pattern, form.routes_vectors)

    def init_theta(key):
        return {"nn": init_mlp(key, layer_sizes(decays, options))}

    def bind(theta, *, num_steps=None):
        del num_steps

        def init_fn(params):
            return _init_state(to_adam, decays, rule.layout, params)

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "celo2")
            if max_norm is not None:
                updates = clip_by_global_norm(updates, max_norm)
            count = optax.safe_increment(state.count)
            routes = routes_of(to_adam, updates)
            rate = rate_at(learning_rate, state.count)
            shared = Shared(decays, decay_of(rate, weight_decay), None, count)
            network = one_network(theta["nn"])
            by_adam = functools.partial(_update_by_adam, adam, rate, count)
            by_network = functools.partial(
                _update_rest, rule, network, rate, step_mult, shared
            )
            updates, *slots, (momentum,), (rms,) = map_together(
                routed(routes, by_adam, by_network),
                updates,
                params,
                *state.accumulators,
                (state.momentum,),
                (state.rms,),
            )
            return updates, Celo2State(count, Accumulators(*slots), momentum, rms)

        return transformation(init_fn, update_fn, name="celo2")

    needs = ("params", "learning_rate")
    return LearnedOptimizer(init_theta, bind, "celo2", arguments, needs)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _init_state(
    to_adam: Callable[..., bool], decays: Decays, layout: Layout, params: Any
) -> Celo2State:
    """The first state, where each parameter has the arrays of its own rule alone."""
    routes = jax.tree_util.tree_map_with_path(to_adam, params)

    def where(adam, tree):
        return jax.tree.map(
            lambda route, x: x if route == adam else jnp.zeros(1, x.dtype),
            routes,
            tree,
        )

    accumulators = init_accumulators(params, decays, layout)
    return Celo2State(
        jnp.zeros([], jnp.int32),
        Accumulators(
            *(tuple(where(False, x) for x in group) for group in accumulators)
        ),
        where(True, state_zeros(params)),
        where(True, state_zeros(params)),
    )


def _update_by_adam(adam, rate, count, grad, param, *slots):
    """The update of one tensor, and its slots: those of the learned rule stay."""
    *others, momentum, rms = slots
    grad = finite_gradient(grad, adam.bound)
    step, m, v = _adam_step(adam, grad, momentum[0], rms[0], count)
    update = -adam.mult * rate * (step + adam.weight_decay * param)
    return update, *others, (m,), (v,)


def _adam_step(adam, grad, momentum, rms, count):
    """Adam's direction, and its new moments."""
    if adam.eps_in_root:  # the JAX code, whose decays are float32 arrays
        m = update_moment(momentum, grad, adam.b1)
        v = update_moment(rms, grad * grad, adam.b2)
    else:
        m = adam.b1 * momentum + (1 - adam.b1) * grad
        v = adam.b2 * rms + (1 - adam.b2) * grad * grad
    m_hat, v_hat = m, v
    if adam.corrects:
        m_hat, v_hat = m / (1 - adam.b1**count), v / (1 - adam.b2**count)
    if adam.eps_in_root:
        return m_hat * lax.rsqrt(v_hat + adam.eps), m, v
    return m_hat / (square_root(v_hat) + adam.eps), m, v


def _update_rest(rule, network, rate, step_mult, shared, tensors):
    """The updates by the learned rule, and the slots: Adam's stay."""
    seen = [tensor[:-2] for tensor in tensors]
    new = update_by_network(rule, network, rate, step_mult, shared, seen)
    return [(*x, *tensor[-2:]) for x, tensor in zip(new, tensors, strict=True)]


def update_by_network(
    rule: Rule,
    network: Any,
    rate: Any,
    step_mult: float,
    shared: Shared,
    tensors: list[tuple],
) -> list[tuple]:
    """The learned rule, as `map_together` takes it.

    Args:
      rule, network, shared: as `update_tensors` has them.
      rate, step_mult: whose product multiplies steps.
      tensors: `(grad, param, *accumulators)` of each.
    """
    old = [Tensor(g, p, Accumulators(*x)) for g, p, *x in tensors]
    scale = jnp.full(1, rate * step_mult, jnp.float32)
    return [(u, *x) for u, x in update_tensors(rule, old, network, scale, shared)]


def goes_to_adam(
    pattern: re.Pattern | None, vectors: bool, path: Sequence[Any], param: Any
) -> bool:
    """Whether Adam updates a parameter.

    Args:
      pattern: to be found in its path, keys joined by `/`; None sends nothing to Adam.
      vectors: whether vectors and scalars go there too.
      path, param: as `tree_map_with_path` has them.
    """
    if pattern is None:
        return False
    is_vector = vectors and jnp.ndim(param) < 2
    return is_vector or _matches(pattern, path)


def routes_of(to_adam: Callable[..., bool], grads: Any) -> list[bool]:
    """Which of the tensors that `map_together` gives to its rule go to Adam."""
    return [
        to_adam(path, grad)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if grad.size
    ]


def routed(
    routes: Sequence[bool],
    one: Callable[..., tuple],
    others: Callable[[list[tuple]], list[tuple]],
) -> Callable[[list[tuple]], list[tuple]]:
    """For `map_together`: tensors of true routes by `one`, the rest by `others`."""

    def rule(tensors):
        pairs = list(zip(routes, tensors, strict=True))
        rest = iter(others([tensor for route, tensor in pairs if not route]))
        return [one(*tensor) if route else next(rest) for route, tensor in pairs]

    return rule


def _matches(pattern: re.Pattern, path: Sequence[Any]) -> bool:
    """Whether the pattern is found in the path, its keys joined by `/`."""
    return bool(pattern.search("/".join(str(getattr(k, "key", k)) for k in path)))
