"""`elo`: the rule of small_fc with fixed decays and a learning rate."""

from collections.abc import Sequence
from typing import Literal, Unpack

import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._options import check_published, takes
from .._tensors import clip_by_global_norm
from .._transformation import transformation
from ..rule._network import init_mlp
from ..rule._options import (
    NETWORK,
    NetworkOptions,
    decays_of,
    from_factoring,
    fused_row_mean,
)
from ._small_fc import small_fc_rule, small_fc_sizes, small_fc_transformation


@takes(
    {**NETWORK, "hidden_size": 32},
    old={"factoring": from_factoring, "fused_row_mean": fused_row_mean},
)
def elo(
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    published: Sequence[Literal["fused_row_mean"]] = (),
    **options: Unpack[NetworkOptions],
) -> LearnedOptimizer:
    r"""Per-parameter MLP over Adafactor features and time, with a learning rate (ELO).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi), \tau(t)), \quad
              p \leftarrow p - \alpha\,(d\, e^{\lambda a} + w p)

    The network of `small_fc` at hidden size 32.

    Args:
      learning_rate, weight_decay: alpha, a number or an optax schedule of the number of
        updates made, and w.
      max_norm: bound of the global norm of the gradients; None for none.
      published: defects of the published code that are kept: "fused_row_mean" is that
        of PyLO's fused kernels, see `inverse_roots`.
      **options: see `NetworkOptions`: as for `small_fc`, but hidden_size 32, 2 402
        meta-parameters, and decays that stay. PyLO has layout "torch".

    Raises:
      ValueError: decays that cannot be paired; unknown layout, untouched or defect;
        `update` called without `params`.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.elo(learning_rate=1e-2)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "PyLO: Towards accessible learned optimizers in PyTorch" (Janson et al.,
    2025).
    """
    arguments = checked(elo, locals())
    check_published(published, ["fused_row_mean"])
    decays = decays_of(options)
    sizes = small_fc_sizes(decays, options)
    rule = small_fc_rule(options, published)

    def init_theta(key):
        return {"nn": init_mlp(key, sizes)}

    def bind(theta, *, num_steps=None):
        del num_steps
        tx = small_fc_transformation(
            rule,
            theta["nn"],
            decays,
            step_mult=learning_rate,
            weight_decay=weight_decay,
            name="elo",
        )

        def update_fn(updates, state, params=None, **extra_args):
            require_params(params, "elo")
            if max_norm is not None:
                updates = clip_by_global_norm(updates, max_norm)
            return tx.update(updates, state, params, **extra_args)

        return transformation(tx.init, update_fn, name="elo", finite=False)

    needs = ("params", "learning_rate")
    return LearnedOptimizer(init_theta, bind, "elo", arguments, needs)
