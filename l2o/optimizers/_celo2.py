"""`celo2`: Celo2-base on orthogonalised matrices, Adam on vectors and embeddings."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
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
    Factoring,
    init_accumulators,
    update_moment,
)
from ..rule._features import FEATURES
from ..rule._newton_schulz import NS_COEFFS
from ..rule._rule import Shared, Tensor, Untouched
from ..rule._schedule import decay_of, rate_at
from ._celo2_base import init_celo2, make_rule

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


class _Variant(NamedTuple):
    """Where the two published forms differ."""

    mult_1d: float
    adam_bias_correction: bool
    routes_vectors: bool
    eps_in_root: bool
    bounds_adam: bool
    factoring: Factoring
    torch_layout: bool


_VARIANTS = {
    "jax": _Variant(20.0, False, False, True, False, "stable", False),
    "pylo": _Variant(1.0, True, True, False, True, "torch", True),
}


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
    orthogonalize: bool = True,
    ns_coeffs: Sequence[float] = NS_COEFFS,
    ns_iters: int = 5,
    ns_eps: float = 1e-8,
    factoring: Factoring | None = None,
    untouched: Untouched = "held",
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
    | normalised axes | last two of (..., in, out) | last two of (out, in, ...) |
    | equal axes | order of (..., in, out) | order of (out, in, ...) |

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
      hidden_size, hidden_layers: the network; 347 meta-parameters by default.
      momentum_decays, rms_decays, adafactor_decays, features, exp_mult, rmsmult,
      param_scale_mult, precondition_output, normalize_input, normalize_output,
      aggregate_mag, bias_correction, activation, orthogonalize, ns_coeffs, ns_iters,
      ns_eps: as for `celo2_base`.
      factoring: which of several axes of one size counts as the larger, see
        `factored_axes`; None for the variant's.
      untouched: what becomes of entries that have had no gradient: "held", they only
        decay, or "pushed" by the network, as published. Adam pushes none.

    Raises:
      ValueError: decays that cannot be paired; unknown features, activation, variant or
        untouched; `update` called without `params`.

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
    mult = form.mult_1d if mult_1d is None else mult_1d
    decay_1d = weight_decay if weight_decay_1d is None else weight_decay_1d
    correct = (
        form.adam_bias_correction
        if adam_bias_correction is None
        else adam_bias_correction
    )
    rule, decays = make_rule(
        arguments,
        factoring=form.factoring if factoring is None else factoring,
        torch_layout=form.torch_layout,
        gradient_bound=gradient_bound,
    )

    def to_adam(path, param):
        if pattern is None:
            return False
        is_vector = form.routes_vectors and jnp.ndim(param) < 2
        return is_vector or matches(pattern, path)

    def init_theta(key):
        return {"nn": init_celo2(key, rule, decays, hidden_size, hidden_layers)}

    def bind(theta, *, num_steps=None):
        del num_steps
        adam_bound = gradient_bound if form.bounds_adam else None

        def init_fn(params):
            routes = jax.tree_util.tree_map_with_path(to_adam, params)

            def where(adam, tree):
                return jax.tree.map(
                    lambda route, x: x if route == adam else jnp.zeros(1, x.dtype),
                    routes,
                    tree,
                )

            accumulators = init_accumulators(params, decays, rule.factoring)
            return Celo2State(
                jnp.zeros([], jnp.int32),
                Accumulators(
                    *(tuple(where(False, x) for x in group) for group in accumulators)
                ),
                where(True, state_zeros(params)),
                where(True, state_zeros(params)),
            )

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "celo2")
            if max_norm is not None:
                updates = clip_by_global_norm(updates, max_norm)
            count = optax.safe_increment(state.count)
            routes = [
                to_adam(path, grad)
                for path, grad in jax.tree_util.tree_leaves_with_path(updates)
                if grad.size
            ]

            rate = rate_at(learning_rate, state.count)
            shared = Shared(decays, decay_of(rate, weight_decay), None, count)
            network = one_network(theta["nn"])

            def learned(tensors):
                old = [Tensor(g, p, Accumulators(*x)) for g, p, *x, _, _ in tensors]
                new = update_tensors(
                    rule,
                    old,
                    network,
                    jnp.full(1, rate * rmsmult, jnp.float32),
                    shared,
                )
                rest = [t[-2:] for t in tensors]
                return [(u, *x, *adam) for (u, x), adam in zip(new, rest, strict=True)]

            def adam(grad, param, *rest):
                *slots, momentum, rms = rest
                grad = finite_gradient(grad, adam_bound)
                step, m, v = adam_step(grad, momentum[0], rms[0], count)
                update = -mult * rate * (step + decay_1d * param)
                return update, *slots, (m,), (v,)

            updates, *slots, (momentum,), (rms,) = map_together(
                routed(routes, adam, learned),
                updates,
                params,
                *state.accumulators,
                (state.momentum,),
                (state.rms,),
            )
            return updates, Celo2State(count, Accumulators(*slots), momentum, rms)

        return transformation(init_fn, update_fn, name="celo2")

    def adam_step(grad, momentum, rms, count):
        if form.eps_in_root:  # the JAX code, whose decays are float32 arrays
            m = update_moment(momentum, grad, adam_b1)
            v = update_moment(rms, grad * grad, adam_b2)
        else:
            m = adam_b1 * momentum + (1 - adam_b1) * grad
            v = adam_b2 * rms + (1 - adam_b2) * grad * grad
        m_hat, v_hat = m, v
        if correct:
            m_hat, v_hat = m / (1 - adam_b1**count), v / (1 - adam_b2**count)
        if form.eps_in_root:
            return m_hat * lax.rsqrt(v_hat + adam_eps), m, v
        return m_hat / (square_root(v_hat) + adam_eps), m, v

    needs = ("params", "learning_rate")
    return LearnedOptimizer(init_theta, bind, "celo2", arguments, needs)


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


def matches(pattern: re.Pattern, path: Sequence[Any]) -> bool:
    """Whether the pattern is found in the path, its keys joined by `/`."""
    return bool(pattern.search("/".join(str(getattr(k, "key", k)) for k in path)))
