"""A loss whose gradient is another one than its value's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._base import Task


@jax.custom_jvp
def with_gradient(value: jax.Array, gradient: Any, params: Any) -> jax.Array:
    r"""`value`, of which `jax.grad` with respect to `params` is `gradient`.

    .. math:: \ell = v, \quad \dot\ell = \langle g, \dot p \rangle

    The outermost of several differentiations sees the value and the gradient as the
    functions of the parameters that they are: a meta-gradient by backpropagation is
    that of the modified updates and of the true losses before them. Where a loss is
    differentiated only once, its derivative is the modified one; with respect to
    anything but the parameters (a config, a batch) it is 0.

    Args:
      value: scalar.
      gradient: like `params`.
      params: what it is to be the gradient with respect to.

    Example:
      >>> import jax
      >>> from l2o.tasks.augment import with_gradient
      >>> f = lambda x: with_gradient(x**2, 5 * x, x)
      >>> float(f(3.0)), float(jax.grad(f)(3.0)), float(jax.grad(jax.grad(f))(3.0))
      (9.0, 15.0, 5.0)
    """
    del gradient, params
    return value


@with_gradient.defjvp
def _with_gradient_jvp(primals, tangents):
    value, gradient, _ = primals
    _, _, direction = tangents
    products = jax.tree.map(
        lambda g, d: jnp.sum((g * d).astype(value.dtype)), gradient, direction
    )
    return value, sum(jax.tree.leaves(products), jnp.zeros_like(value))


def modified(
    task: Task, modify: Callable[[Any, jax.Array], Any], salt: int = 0
) -> Task:
    """The task with `modify(gradient, key)` for its gradient.

    Args:
      task: its loss is evaluated once, and its own key left as it is.
      modify: to a gradient of the same shapes; dtypes are restored.
      salt: keeps `key`, fresh in every step, apart from others.
    """

    def loss(params, model_state, key, batch):
        (value, rest), gradient = jax.value_and_grad(task.loss, has_aux=True)(
            params, model_state, key, batch
        )
        new = modify(gradient, jax.random.fold_in(key, salt))
        return with_gradient(value, like(new, params), params), rest

    return task._replace(loss=loss)


def like(tree: Any, model: Any) -> Any:
    """The same with the dtypes of `model`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, model)


def inner(a: Any, b: Any) -> jax.Array:
    """Inner product of two trees, in float32 at least."""
    product = lambda x, y: jnp.sum(_wide(x) * _wide(y))
    return sum(jax.tree.leaves(jax.tree.map(product, a, b)), jnp.zeros(()))


def norm(tree: Any) -> jax.Array:
    """Global 2-norm, with a derivative of 0 at 0."""
    square = inner(tree, tree)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
