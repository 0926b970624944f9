"""`mulo`: small_fc as PyLO runs it, and muP scaling for any learned optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ._accumulators import Decays, Factoring, check_factoring
from ._arguments import check_number, checked
from ._base import LearnedOptimizer, require_params
from ._network import init_mlp
from ._rule import Untouched
from ._schedule import rate_at
from ._small_fc import (
    init_decay_offsets,
    learned_decays,
    small_fc_rule,
    small_fc_sizes,
    small_fc_transformation,
)
from ._tensors import square_root
from ._transformation import transformation


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
    is `l2o.weight_decay(optimizer, learning_rate * w, kind="after")`.

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


def mup(
    optimizer: LearnedOptimizer, multipliers: Any | Callable[[Any], Any]
) -> LearnedOptimizer:
    r"""Multiplies each parameter's steps by a number of its own (muP scaling).

    .. math:: p_i \leftarrow p_i + c_i\, u_i

    so that one theta transfers between widths: `c = 1 / fan_in` for hidden matrices,
    relative to the width it was meta-trained at, and 1 for input and output matrices,
    biases and norms; see `mup_multipliers`.

    Args:
      optimizer: any learned optimizer.
      multipliers: a tree of numbers like the parameters, or a function of the
        parameters that returns one.

    Raises:
      ValueError: a multiplier is no number, or they do not have the parameters'
        structure.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> wide, base = {"w": jnp.ones((64, 64))}, {"w": jnp.ones((16, 16))}
      >>> l2o.mup_multipliers(wide, base)
      {'w': 0.25}
      >>> optimizer = l2o.mup(l2o.mulo(), l2o.mup_multipliers(wide, base))

    Source: "μLO: Compute-efficient meta-generalization of learned optimizers" (Thérien
    et al., 2024).
    """

    if not callable(multipliers):
        for path, x in jax.tree_util.tree_leaves_with_path(multipliers):
            check_number("mup", "multipliers" + jax.tree_util.keystr(path), x)

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)

        def update_fn(updates, state, params=None, **extra_args):
            require_params(params, "mup")
            # What is scaled below is rounded once, by `transformation`.
            updates = optax.tree.cast(updates, jnp.float32)
            updates, state = tx.update(updates, state, params, **extra_args)
            c = multipliers(params) if callable(multipliers) else multipliers
            given: Any = jax.tree.structure(c)
            if given != jax.tree.structure(updates):
                raise ValueError(
                    "mup needs one multiplier per parameter: they have the structure "
                    f"{given}, the parameters {jax.tree.structure(updates)}"
                )
            return jax.tree.map(lambda u, x: u * x, updates, c), state

        return transformation(tx.init, update_fn, name="mup")

    needs = _with_params(optimizer.needs)
    return optimizer._replace(bind=bind, name="", arguments={}, needs=needs)


def mup_multipliers(params: Any, base: Any, *, hidden_lr_mult: float = 1.0) -> Any:
    """The multipliers of `mup`, from a model and the same model at its base width.

    A tensor of which two axes grew is a hidden matrix: `hidden_lr_mult` over the growth
    of its fan-in, the first of the two in (..., in, out). All others have 1.

    Args:
      params: a tree of arrays (or of anything with a shape).
      base: the same tree at the width that counts as 1; for muLO's published weights
        that is a width of one, so that hidden matrices get 1 / fan_in.
      hidden_lr_mult: factor of the hidden matrices.

    Raises:
      ValueError: a tensor that has other axes in `base`, or of which more than two
        axes grew.
    """

    def multiplier(path, param, small):
        name = jax.tree_util.keystr(path)
        if len(param.shape) != len(small.shape):
            raise ValueError(f"{name} has shape {param.shape} and base {small.shape}")
        grown = [n / m for n, m in zip(param.shape, small.shape, strict=True) if n != m]
        if len(grown) > 2:
            raise ValueError(
                f"{name} grew along {len(grown)} axes, muP knows up to two"
            )
        return hidden_lr_mult / grown[0] if len(grown) == 2 else 1.0

    return jax.tree_util.tree_map_with_path(multiplier, params, base)


def _with_params(needs: tuple[str, ...]) -> tuple[str, ...]:
    return needs if "params" in needs else ("params", *needs)
