"""Any learned optimizer, on matrices instead of tensors."""

from collections.abc import Mapping
from typing import Any

from .._axes import AxesArgument, check_axes
from .._base import LearnedOptimizer
from .._transformation import transformation
from .._views import viewed
from ._wrapped import wrapped


def with_axes(
    optimizer: LearnedOptimizer, axes: AxesArgument = "inferred"
) -> LearnedOptimizer:
    r"""Shows an optimizer every tensor as a matrix, with its inputs as rows.

    .. math:: p \leftarrow p + V^{-1} u(V g,\; V p)

    with V what `describe_axes` prints: a convolution's kernel (h, w, in, out) is one
    matrix (h w in, out), an attention kernel (model, heads, head) is (model, heads
    head), and PyTorch's (out, in) is transposed. Stacked layers keep their first axis.
    Published optimizers were trained without V; weights may do better or worse with it.

    Args:
      optimizer: any learned optimizer that has no argument `axes` of its own.
      axes: as in `axes_of`: "inferred", a function of path and shape, or a tree.

    Raises:
      ValueError: something else than axes, or an optimizer that infers axes itself.

    Example:
      >>> import l2o, jax, jax.numpy as jnp
      >>> optimizer = l2o.with_axes(l2o.celo2_base())
      >>> tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}}
      >>> updates, state = tx.update(params, tx.init(params), params)

    Source: this project.
    """
    check_axes("with_axes", axes)
    if _infers(optimizer.arguments):
        raise ValueError(
            f"{optimizer.name} sees matrices already: give it the argument axes itself"
        )

    def bind(theta, *, num_steps=None):
        tx = optimizer.bind(theta, num_steps=num_steps)
        seen = viewed(lambda *_: tx, axes, tables=True)
        return transformation(
            seen.init, seen.update, name="with_axes", reads_params=True
        )

    return wrapped("with_axes", {"optimizer": optimizer}, {"axes": axes}, bind)


def _infers(arguments: Mapping[str, Any]) -> bool:
    """Whether an optimizer or one that it wraps takes tensors for other matrices."""
    if arguments.get("axes", "last_two") != "last_two":
        return True
    parts = (x for x in arguments.values() if isinstance(x, Mapping))
    return any(_infers(x["arguments"]) for x in parts if "arguments" in x)
