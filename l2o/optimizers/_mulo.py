"""`mulo`: small_fc as PyLO runs it, and muP scaling for any learned optimizer."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._tensors import square_root
from .._transformation import transformation
from ..rule._accumulators import Decays, Factoring, check_factoring
from ..rule._network import init_mlp
from ..rule._rule import Untouched
from ..rule._schedule import rate_at
from ._small_fc import (
    init_decay_offsets,
    learned_decays,
    small_fc_rule,
    small_fc_sizes,
    small_fc_transformation,
)


def mulo(
    *,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    max_grad_norm: float | None = None,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    exp_mult: float = 1e-3,
    step_mult: float = 0.01,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    rms_decays: Sequence[float] = (0.999,),
    adafactor_decays: Sequence[float] = (0.9, 0.99, 0.999),
    fused_row_mean: bool = False,
    factoring: Factoring = "stable",
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""small_fc meta-trained under muP, to be scaled with `mup` (muLO, AdafacLO).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi), \tau(t)), \quad
              p \leftarrow p - \alpha \lambda_1 d\, e^{\lambda_2 a}

    The rule and the learned decays of `small_fc` at hidden size 32. PyLO's weight decay
    is `l2o.decay_weights(optimizer, learning_rate * w, kind="after")`.

    Args:
      learning_rate: alpha, a number or an optax schedule of the number of updates
        made.
      max_grad_norm: bound of the norm of each tensor's gradient; None for none.
      hidden_size, hidden_layers: the network; 2 409 meta-parameters by default.
      exp_mult, step_mult: lambda_2 and lambda_1.
      momentum_decays, rms_decays, adafactor_decays: initial decays; theta holds their
        learned offsets.
      fused_row_mean: the defect of PyLO's fused kernels, see `inverse_roots`.
      factoring: which of several axes of one size counts as the larger, see
        `factored_axes`; "torch" is PyLO's order.
      untouched: what becomes of entries that have had no gradient: "held", they only
        decay, or "pushed" by the network, as published.

    Raises:
      ValueError: decays that cannot be paired; unknown untouched; `update` called
        without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.mup(l2o.mulo(), {"hidden": 1 / 512, "readout": 1.0})
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"hidden": jnp.ones((512, 512)), "readout": jnp.ones((512, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "μLO: Compute-efficient meta-generalization of learned optimizers" (Thérien
    et al., 2024).
    """
    arguments = checked(mulo, locals())
    check_factoring(factoring)
    decays = Decays(tuple(momentum_decays), tuple(rms_decays), tuple(adafactor_decays))
    sizes = small_fc_sizes(decays, hidden_size, hidden_layers)
    rule = small_fc_rule(exp_mult, factoring, untouched, fused_row_mean=fused_row_mean)

    def init_theta(key):
        return {**init_decay_offsets(decays), "nn": init_mlp(key, sizes)}

    def bind(theta, *, num_steps=None):
        del num_steps
        learned = learned_decays(decays, theta)
        momentum: Any = jnp.clip(jnp.asarray(learned.momentum), 0, 1)
        tx = small_fc_transformation(
            rule,
            theta["nn"],
            learned._replace(momentum=momentum),
            step_mult=lambda count: rate_at(learning_rate, count) * step_mult,
            name="mulo",
        )

        def clipped(grad, bound):
            norm = square_root(jnp.sum(jnp.square(grad.astype(jnp.float32))))
            return grad * jnp.minimum(1.0, bound / (norm + 1e-6))

        def update_fn(updates, state, params=None, **extra_args):
            require_params(params, "mulo")
            if max_grad_norm is not None:
                updates = jax.tree.map(lambda g: clipped(g, max_grad_norm), updates)
            return tx.update(updates, state, params, **extra_args)

        return transformation(tx.init, update_fn, name="mulo")

    return LearnedOptimizer(init_theta, bind, "mulo", arguments)
