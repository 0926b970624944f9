"""Means and variances by native kernels."""

import jax
import jax.numpy as jnp
import numpy as np
from kernel_operands import assert_close, needs_kernels, stacked

from l2o.kernels._statistics import mean_and_variance

STATISTICS_SHAPES = ((1,), (5,), (3, 7), (4096,), (4097,), (17, 4099), (300, 301))


def arrays_of(seed):
    """Their means are large beside their deviations, so that squares would cancel."""
    rng = np.random.default_rng(seed)
    return [np.float32(100 + rng.standard_normal(s)) for s in STATISTICS_SHAPES]


@needs_kernels
def test_means_and_variances():
    entries = [arrays_of(seed) for seed in range(2)]
    means, variances = jax.jit(jax.vmap(mean_and_variance))(stacked(entries))
    for k, entry in enumerate(entries):
        wide = [np.float64(x) for x in entry]
        assert_close([means[k]], [[x.mean() for x in wide]], 1e-6)
        assert_close([variances[k]], [[x.var() for x in wide]], 1e-5)


@needs_kernels
def test_means_and_variances_of_what_is_not_finite():
    arrays = [np.float32([1, np.inf, 2]), np.float32([np.nan, 1]), np.float32([3, 5])]
    means, variances = mean_and_variance(arrays)
    np.testing.assert_array_equal(means, [np.inf, np.nan, 4])
    np.testing.assert_array_equal(variances, [np.nan, np.nan, 1])


@needs_kernels
def test_derivatives_of_means_and_variances():
    arrays = arrays_of(0)[:3]
    weights = np.float32(np.arange(1, 7).reshape(2, 3))

    def product(arrays):
        return jnp.vdot(jnp.stack(mean_and_variance(arrays)), weights)

    for x, slope, of_mean, of_variance in zip(
        arrays, jax.grad(product)(arrays), *weights
    ):
        expected = (of_mean + 2 * of_variance * (x - np.mean(np.float64(x)))) / x.size
        assert_close([slope], [expected], 1e-5)
