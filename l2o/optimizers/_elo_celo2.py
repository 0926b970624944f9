"""`elo_celo2`: Celo2's rule, and AdamW on the accumulators that it has anyway."""

import functools
import re
from typing import Any, Unpack

import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._options import takes
from .._tensors import clip_by_global_norm, finite_gradient, map_together, square_root
from .._transformation import transformation
from ..kernels._dispatch import one_network
from ..rule._accumulators import (
    Accumulators,
    factored_axes,
    init_accumulators,
    update_accumulators,
)
from ..rule._network import init_mlp
from ..rule._options import CELO2, Celo2Options, from_factoring, layer_sizes
from ..rule._rule import Shared
from ..rule._schedule import decay_of, rate_at
from ._celo2 import REGEX_1D, goes_to_adam, routed, routes_of, update_by_network
from ._celo2_base import NEW_CELO2, OLD_CELO2, Celo2BaseState, make_rule


def _from_torch_layout(arguments: dict[str, Any], value: Any) -> None:
    """layout"""
    layout = arguments.setdefault("layout", "torch" if value else "jax")
    if value != layout.startswith("torch"):
        raise ValueError(
            f"elo_celo2 has one layout for all that it does with axes: torch_layout "
            f"{value} does not go with layout {layout!r}"
        )


@takes(
    {**CELO2, "orthogonalize": True, "layout": "torch"},
    old={
        **OLD_CELO2,
        "factoring": from_factoring,
        "torch_layout": _from_torch_layout,
    },
    absent=NEW_CELO2,
)
def elo_celo2(
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: float = 0.1,
    regex_1d: str | None = REGEX_1D,
    mult_1d: float = 1.0,
    weight_decay_1d: float | None = None,
    max_norm: float | None = 1.0,
    gradient_bound: float = 1000.0,
    step_mult: float = 1.0,
    **options: Unpack[Celo2Options],
) -> LearnedOptimizer:
    r"""Learned rule with orthogonal steps, AdamW for vectors, embeddings (ELO-Celo2).

    .. math:: p \leftarrow p - \alpha\,(\mathrm{normalise}(\mathrm{NS}(d)) + w p)
              \quad\text{or}\quad
              p \leftarrow p - \mu \alpha\,(\hat m / (\sqrt{\hat v} + 10^{-8}) + w p)

    As the "pylo" variant of `celo2`, but Adam takes its moments from the first momentum
    and the last second moment of the learned rule, bias-corrected.

    Args:
      learning_rate, weight_decay: alpha, a number or an optax schedule of the number of
        updates made, and w.
      regex_1d: parameters whose path, keys joined by `/`, it is found in go to Adam
        besides vectors and scalars; None sends nothing there.
      mult_1d, weight_decay_1d: mu, and Adam's w where it differs.
      max_norm: bound of the global norm of the gradients; None for none.
      gradient_bound: gradients are then cut to it.
      step_mult: factor of the normalised step.
      **options: see `Celo2Options`; the defaults are those of `celo2_base`, but
        orthogonalize is on and layout "torch", as published. Adam pushes no entries
        that have had no gradient.

    Raises:
      ValueError: decays that cannot be paired; unknown features, activation, layout or
        untouched; `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.elo_celo2(learning_rate=3e-4, mult_1d=20.0)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "PyLO: Towards accessible learned optimizers in PyTorch" (Janson et al.,
    2025).
    """
    arguments = checked(elo_celo2, locals())
    pattern = re.compile(regex_1d) if regex_1d else None
    decay_1d = weight_decay if weight_decay_1d is None else weight_decay_1d
    rule, decays = make_rule(options, gradient_bound=gradient_bound)

    to_adam = functools.partial(goes_to_adam, pattern, True)

    def init_theta(key):
        return {"nn": init_mlp(key, layer_sizes(decays, options))}

    def bind(theta, *, num_steps=None):
        del num_steps

        def init_fn(params):
            accumulators = init_accumulators(params, decays, rule.layout)
            return Celo2BaseState(jnp.zeros([], jnp.int32), accumulators)

        def update_fn(updates, state, params=None, **extra_args):
            del extra_args
            require_params(params, "elo_celo2")
            count = optax.safe_increment(state.count)
            routes = routes_of(to_adam, updates)
            if max_norm is not None:
                updates = clip_by_global_norm(updates, max_norm)
            rate = rate_at(learning_rate, state.count)
            shared = Shared(decays, decay_of(rate, weight_decay), None, count)
            network = one_network(theta["nn"])
            by_adam = functools.partial(
                _update_by_adam, rule, shared, rate, mult_1d, decay_1d
            )
            by_network = functools.partial(
                update_by_network, rule, network, rate, step_mult, shared
            )
            updates, *accumulators = map_together(
                routed(routes, by_adam, by_network),
                updates,
                params,
                *state.accumulators,
            )
            return updates, Celo2BaseState(count, Accumulators(*accumulators))

        return transformation(init_fn, update_fn, name="elo_celo2")

    needs = ("params", "learning_rate")
    return LearnedOptimizer(init_theta, bind, "elo_celo2", arguments, needs)


def _update_by_adam(rule, shared, rate, mult, weight_decay, grad, param, *slots):
    """The update of one tensor, and its accumulators, of which two are Adam's."""
    grad = finite_gradient(grad, rule.grad_bound)
    axes = factored_axes(grad.shape, rule.layout)
    decays = shared.decays
    accumulators = update_accumulators(Accumulators(*slots), grad, decays, axes)
    m, v = accumulators.momentum[0], accumulators.rms[-1]
    m_hat = m / (1 - decays.momentum[0] ** shared.count)
    v_hat = v / (1 - decays.rms[-1] ** shared.count)
    step = m_hat / (square_root(v_hat) + 1e-8)
    update = -mult * rate * (step + weight_decay * param)
    return update, *accumulators
