"""`elo`: the rule of small_fc with fixed decays and a learning rate."""

from collections.abc import Sequence

import optax

from .._arguments import checked
from .._base import LearnedOptimizer, require_params
from .._tensors import clip_by_global_norm
from .._transformation import transformation
from ..rule._accumulators import Decays, Factoring, check_factoring
from ..rule._network import init_mlp
from ..rule._rule import Untouched
from ._small_fc import small_fc_rule, small_fc_sizes, small_fc_transformation


def elo(
    *,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: float = 0.0,
    max_norm: float | None = None,
    hidden_size: int = 32,
    hidden_layers: int = 2,
    exp_mult: float = 1e-3,
    momentum_decays: Sequence[float] = (0.9, 0.99, 0.999),
    rms_decays: Sequence[float] = (0.999,),
    adafactor_decays: Sequence[float] = (0.9, 0.99, 0.999),
    fused_row_mean: bool = False,
    factoring: Factoring = "stable",
    untouched: Untouched = "held",
) -> LearnedOptimizer:
    r"""Per-parameter MLP over Adafactor features and time, with a learning rate (ELO).

    .. math:: (d, a) = \mathrm{MLP}_\theta(\mathrm{normalise}(\phi), \tau(t)), \quad
              p \leftarrow p - \alpha\,(d\, e^{\lambda a} + w p)

    The network of `small_fc` at hidden size 32.

    Args:
      learning_rate, weight_decay: alpha, a number or an optax schedule of the number of
        updates made, and w.
      max_norm: bound of the global norm of the gradients; None for none.
      hidden_size, hidden_layers: the network; 2 402 meta-parameters by default.
      exp_mult: lambda.
      momentum_decays, rms_decays, adafactor_decays: fixed; one accumulator each.
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
      >>> optimizer = l2o.elo(learning_rate=1e-2)
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"w": jnp.ones((3, 2))}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: "PyLO: Towards accessible learned optimizers in PyTorch" (Janson et al.,
    2025).
    """
    arguments = checked(elo, locals())
    check_factoring(factoring)
    decays = Decays(tuple(momentum_decays), tuple(rms_decays), tuple(adafactor_decays))
    sizes = small_fc_sizes(decays, hidden_size, hidden_layers)
    rule = small_fc_rule(exp_mult, factoring, untouched, fused_row_mean=fused_row_mean)

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
