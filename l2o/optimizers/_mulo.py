"""`mulo`: small_fc as PyLO runs it, and muP scaling for any learned optimizer."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._options import check_published, takes
from .._tensors import square_root
from .._transformation import transformation
from ..rule._network import init_mlp
from ..rule._options import (
    NETWORK,
    NetworkOptions,
    decays_of,
    from_factoring,
    fused_row_mean,
)
from ..rule._schedule import rate_at
from ._small_fc import (
    init_decay_offsets,
    learned_decays,
    small_fc_rule,
    small_fc_sizes,
    small_fc_transformation,
)


@takes(
    {**NETWORK, "hidden_size": 32},
    old={
        "max_grad_norm": "max_tensor_norm",
        "factoring": from_factoring,
        "fused_row_mean": fused_row_mean,
    },
)
def mulo(
    *,
    learning_rate: optax.ScalarOrSchedule = 1.0,
    max_tensor_norm: float | None = None,
    step_mult: float = 0.01,
    published: Sequence[Literal["fused_row_mean"]] = (),
    **options: Unpack[NetworkOptions],
) -> LearnedOptimizer:
    r"""small_fc meta-trained under muP, to be scaled with `mup` (muLO, AdafacLO).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi), \tau(t)), \quad
              p \leftarrow p - \alpha \lambda_1 d\, e^{\lambda_2 a}

    The rule and the learned decays of `small_fc` at hidden size 32. PyLO's weight decay
    is `l2o.decay_weights(optimizer, learning_rate * w, kind="after")`.

    Args:
      learning_rate: alpha, a number or an optax schedule of the number of updates
        made.
      max_tensor_norm: bound of the norm of each tensor's gradient; None for none.
      step_mult: lambda_1.
      published: defects of the published code that are kept: "fused_row_mean" is that
        of PyLO's fused kernels, see `inverse_roots`.
      **options: see `NetworkOptions`: as for `small_fc`, but hidden_size 32, 2 409
        meta-parameters. lambda_2 is exp_mult. PyLO has layout "torch".

    Raises:
      ValueError: decays that cannot be paired; unknown layout, untouched or defect;
        `update` called without `params`.

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
    check_published(published, ["fused_row_mean"])
    decays = decays_of(options)
    sizes = small_fc_sizes(decays, options)
    rule = small_fc_rule(options, published)

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
            if max_tensor_norm is not None:
                updates = jax.tree.map(lambda g: clipped(g, max_tensor_norm), updates)
            return tx.update(updates, state, params, **extra_args)

        return transformation(tx.init, update_fn, name="mulo")

    return LearnedOptimizer(init_theta, bind, "mulo", arguments)
