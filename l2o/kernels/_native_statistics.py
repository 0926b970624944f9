"""Means and variances of many tensors in one pass, by a native kernel."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ._library import STATISTICS, TOGETHER
from ._plain_statistics import plain_mean_and_variance
from ._primitive import make_primitive, varying_alike


def native_mean_and_variance(
    arrays: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """As `mean_and_variance`."""
    groups = [arrays[k : k + TOGETHER] for k in range(0, len(arrays), TOGETHER)]
    results = [_mean_and_variance(*varying_alike(group)) for group in groups]
    means, variances = zip(*results, strict=True)
    return jnp.concatenate(means), jnp.concatenate(variances)


@jax.custom_jvp
def _mean_and_variance(*arrays: jax.Array) -> list[jax.Array]:
    return _statistics.bind(*arrays, layout=None, batch=0)


@_mean_and_variance.defjvp
def _mean_and_variance_jvp(primals, tangents):
    means, variances = _mean_and_variance(*primals)
    slopes = [
        2 * jnp.mean((x - mean) * t)
        for x, mean, t in zip(primals, means, tangents, strict=True)
    ]
    new_means = jnp.stack([jnp.mean(t) for t in tangents])
    return [means, variances], [new_means, jnp.stack(slopes)]


def _statistics_with_kernel(layout, batch, *arrays):
    sizes = [math.prod(x.shape[batch:]) for x in arrays]
    results = _statistics_like(layout, batch, *map(jax.typeof, arrays))
    call = jax.ffi.ffi_call(STATISTICS, results)
    return list(call(*arrays, sizes=np.array(sizes, np.int64)))


def _statistics_like(layout, batch, like, *others):
    del layout
    shape = (*like.shape[:batch], 1 + len(others))
    sharding = like.sharding.update(spec=jax.P(*(None for _ in shape)))
    return [like.update(shape=shape, sharding=sharding, weak_type=False)] * 2


_statistics = make_primitive(
    STATISTICS,
    lambda layout, *arrays: list(plain_mean_and_variance(*arrays)),
    _statistics_like,
    _statistics_with_kernel,
)
