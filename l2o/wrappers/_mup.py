"""Steps scaled by the width of a model, as muP prescribes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._arguments import check_number
from .._axes import AxesArgument, axes_of
from .._base import LearnedOptimizer, require_params
from .._transformation import transformation


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


def mup_multipliers(
    params: Any,
    base: Any,
    *,
    hidden_lr_mult: float = 1.0,
    axes: AxesArgument | None = None,
) -> Any:
    """The multipliers of `mup`, from a model and the same model at its base width.

    A tensor of which two axes grew is a hidden matrix: `hidden_lr_mult` over the growth
    of its fan-in, the first of the two in (..., in, out). All others have 1. With
    `axes`, a hidden matrix is one of which fan-in and fan-out grew, in any layout.

    Args:
      params: a tree of arrays (or of anything with a shape).
      base: the same tree at the width that counts as 1; for muLO's published weights
        that is a width of one, so that hidden matrices get 1 / fan_in.
      hidden_lr_mult: factor of the hidden matrices.
      axes: as in `axes_of`, such as "inferred": for PyTorch's layout (out, in), and for
        attention whose heads grew in number and in width. None is as published.

    Raises:
      ValueError: a tensor that has other axes in `base`, or of which more than two
        axes grew without `axes`.

    Example:
      >>> import l2o, jax.numpy as jnp
      >>> wide = {"weight": jnp.ones((64, 32))}  # of outputs and inputs
      >>> base = {"weight": jnp.ones((16, 16))}
      >>> l2o.mup_multipliers(wide, base, axes="inferred")
      {'weight': 0.5}
    """
    described = None if axes is None else axes_of(params, axes)

    def multiplier(path, param, small, *own):
        name = jax.tree_util.keystr(path)
        if len(param.shape) != len(small.shape):
            raise ValueError(f"{name} has shape {param.shape} and base {small.shape}")
        if own:
            fans = [
                math.prod(param.shape[i] / small.shape[i] for i in part)
                for part in (own[0].inputs, own[0].outputs)
            ]
            hidden = own[0].role != "vector" and 1.0 not in fans
            return hidden_lr_mult / fans[0] if hidden else 1.0
        grown = [n / m for n, m in zip(param.shape, small.shape, strict=True) if n != m]
        if len(grown) > 2:
            raise ValueError(
                f"{name} grew along {len(grown)} axes, muP knows up to two"
            )
        return hidden_lr_mult / grown[0] if len(grown) == 2 else 1.0

    more = () if described is None else (described,)
    return jax.tree_util.tree_map_with_path(multiplier, params, base, *more)


def _with_params(needs: tuple[str, ...]) -> tuple[str, ...]:
    return needs if "params" in needs else ("params", *needs)
