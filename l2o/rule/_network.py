"""A small MLP applied to every parameter of a tensor, written over planes.

There is no trailing feature axis: a tensor's features are a list of planes
(`_features.py`), a hidden layer is a list of planes too, and

    hidden_j = relu(b_j + sum_i w_ij s_i plane_i + sum_k w_kj c_k)

with s_i the planes' normalisers and c_k the features that are constant over the tensor.
Planes of one shape are summed before anything is broadcast, so row and column features
cost their own size only.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Up to this width a layer is unrolled into multiply-adds that XLA fuses; wider layers
# are matrix products over stacked planes. Unrolled at 16, XLA took tens of gigabytes to
# compile two hidden layers for a tree with several small vectors.
_UNROLLED_WIDTH = 8


def init_mlp(key: jax.Array, sizes: Sequence[int]) -> dict[str, jax.Array]:
    """Weights `w0, b0, w1, ...` for layers of the given sizes.

    `w_i` has shape (in, out), drawn from a normal distribution of standard deviation
    `1/sqrt(in)` truncated at two deviations; biases are zero.
    """
    theta = {}
    shapes = list(itertools.pairwise(sizes))
    for i, (k, shape) in enumerate(
        zip(jax.random.split(key, len(shapes)), shapes, strict=True)
    ):
        weights = jax.random.truncated_normal(k, -2, 2, shape, jnp.float32)
        theta[f"w{i}"] = weights / math.sqrt(shape[0])
        theta[f"b{i}"] = jnp.zeros(shape[1], jnp.float32)
    return theta


def apply_mlp(
    theta: dict[str, jax.Array],
    planes: Sequence[jax.Array],
    scales: jax.Array | None,
    constants: jax.Array | None,
    shape: tuple[int, ...],
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
) -> list[jax.Array]:
    """The network's outputs, one plane of `shape` each.

    Args:
      theta: from `init_mlp`, sizes[0] = len(planes) + len(constants). More rows in
        `w0` are not used.
      planes: features that broadcast to `shape`, in the order of `w0`'s rows.
      scales: shape (planes,), multiplied into the rows of `w0`; None for ones.
      constants: shape (n,), features that are equal for the whole tensor; the last
        rows of `w0`; None for none.
      shape: the tensor's shape, at least 1-D.
      activation: between the layers.
    """
    n = len(planes)
    w0 = theta["w0"][:n]
    if scales is not None:
        w0 = w0 * scales[:, None]
    bias = theta["b0"]
    if constants is not None:
        bias = bias + jnp.matmul(
            constants, theta["w0"][n:], precision=lax.Precision.HIGHEST
        )
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, plane in enumerate(planes):
        by_shape.setdefault(plane.shape, []).append(i)

    layers = len(theta) // 2
    hidden = list(bias)
    for group in sorted(by_shape.values(), key=lambda g: planes[g[0]].size):
        product = _linear(w0[np.array(group)], [planes[i] for i in group])
        hidden = [h + y for h, y in zip(hidden, product, strict=True)]
    for i in range(1, layers):
        hidden = [activation(h) for h in hidden]
        product = _linear(theta[f"w{i}"], hidden)
        hidden = [y + b for y, b in zip(product, theta[f"b{i}"], strict=True)]
    return [jnp.broadcast_to(h, shape) for h in hidden]


def _linear(weights: jax.Array, planes: Sequence[jax.Array]) -> list[jax.Array]:
    """`y_j = sum_i w_ij plane_i` for planes of one shape."""
    if weights.shape[1] <= _UNROLLED_WIDTH:
        return list(_unrolled(weights, tuple(planes)))
    return _stacked(weights, planes)


def _stacked(weights: jax.Array, planes: Sequence[jax.Array]) -> list[jax.Array]:
    product = jnp.tensordot(
        weights.T, jnp.stack(planes), 1, precision=lax.Precision.HIGHEST
    )
    return list(jnp.unstack(product))


@jax.custom_jvp
def _unrolled(
    weights: jax.Array, planes: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    columns = [jnp.unstack(column) for column in jnp.unstack(weights, axis=1)]
    return tuple(
        functools.reduce(operator.add, map(operator.mul, column, planes))
        for column in columns
    )


@_unrolled.defjvp
def _unrolled_jvp(primals, tangents):
    # Derivatives are matrix products over stacked planes: unrolled, each weight's would
    # be a reduction of its own, which takes XLA minutes to compile.
    weights, planes = primals
    d_weights, d_planes = tangents
    slopes = map(operator.add, _stacked(d_weights, planes), _stacked(weights, d_planes))
    return _unrolled(weights, planes), tuple(slopes)
