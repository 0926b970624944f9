"""The inverse-variance combination of backpropagation and evolution strategies."""

import jax
import jax.numpy as jnp

from ._backprop import all_finite
from ._base import MetaGradient
from ._episode_lengths import Schedule
from ._episodes import RUNS_SPECS, make_episodes, spread, window_info
from ._es import one_run, with_runs
from ._objective import Objective
from ._perturbations import Perturbations, antithetic, check_perturbations, draw_noise
from ._problem import Bilevel

_FLOOR = 1e-8  # under the variances, as published


def inverse_variance(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    truncation: int = 20,
    std: float = 0.01,
    max_offset: int = 0,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    levels: int = 1,
) -> MetaGradient:
    r"""Backprop where it is quiet, ES where it is not, per meta-parameter.

    .. math:: g = \frac{\bar e / v_e + \bar r / v_r}{1 / v_e + 1 / v_r}, \quad
              e_i = \frac{\epsilon_i (L_i^+ - L_i^-)}{2 \sigma^2}, \quad
              r_i = \frac{\nabla L_i^+ + \nabla L_i^-}{2}

    Both are estimates of the gradient of the same smoothed loss of a window, from the
    same N antithetic pairs of runs; v are their variances over the pairs, estimated per
    meta-parameter. Biased as all truncated estimators are, unless a window is an
    episode; a little more because the weights depend on the estimates.

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      schedule: draws the length of each episode.
      particles: N >= 2 antithetic pairs.
      truncation: K, inner steps per call.
      std: sigma, standard deviation of the perturbations of theta.
      max_offset: as in `gpes`.
      objective: what is made small; the training loss by default.
      levels: of checkpointing within the window, see `checkpointed_scan`.

    Raises:
      ValueError: a number out of range, or an objective that is no sum over windows.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, inverse_variance, learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = inverse_variance(problem, constant(20), truncation=20)

    Source: "Understanding and correcting pathologies in the training of learned
    optimizers" (Metz et al., 2019).
    """
    if particles < 2:
        raise ValueError("inverse_variance needs particles >= 2 to see a variance")
    check_perturbations(Perturbations(std, None, None))
    episodes = make_episodes(
        problem,
        schedule,
        objective,
        particles=particles,
        truncation=truncation,
        max_offset=max_offset,
        levels=levels,
    )

    def init(key, theta):
        return episodes.init(key, spread(theta, 1, particles), problem.data)

    def estimate(key, theta, state, data, step=0):
        k_noise, k_restart = jax.random.split(key)
        noise = draw_noise(problem, k_noise, theta, particles, std)

        def values(thetas):
            start = episodes.restart(with_runs(state, 2), k_restart, thetas, data, step)
            runs, window = episodes.advance(start, thetas, data)
            return jnp.sum(window.terms) / window.divisor, (start, runs, window)

        gradients, (start, runs, window) = jax.grad(values, has_aux=True)(
            antithetic(theta, noise)
        )
        slope = jax.tree.map(lambda g: (g[0] + g[1]) / 2, gradients)
        difference = jnp.sum(window.terms[0] - window.terms[1], -1)
        finite = jnp.isfinite(difference)
        # Leaving out just the runs whose gradient has overflowed would bias the rest.
        exploded = ~jnp.all(all_finite(slope) | ~finite)
        count = jnp.maximum(jnp.sum(finite), 2)
        weight = jnp.where(finite, difference, 0.0) / (2 * std**2 * window.divisor)

        def combine(e, r, keep):
            used = finite.reshape(-1, *[1] * (e.ndim - 1))
            e = e * weight.reshape(used.shape)

            def moments(x):
                mean = jnp.sum(jnp.where(used, x, 0.0), 0) / count
                deviation = jnp.where(used, x - mean, 0.0)
                return mean, jnp.sum(deviation**2, 0) / (count - 1) + _FLOOR

            e_mean, e_variance = moments(e)
            r_mean, r_variance = moments(jnp.where(exploded, 0.0, r))
            share = jnp.where(exploded, 0.0, e_variance / (e_variance + r_variance))
            return jnp.where(keep, share * r_mean + (1 - share) * e_mean, 0.0)

        gradient = jax.tree.map(combine, noise, slope, problem.trainable(theta))
        info = window_info(start, runs, window, finite)
        return gradient, one_run(runs, 0), info

    return MetaGradient(init, estimate, RUNS_SPECS)
