"""Evolution strategies over full unrolls."""

import jax

from ._base import MetaGradient
from ._episode_lengths import Schedule
from ._full import full_info, make_full_unroll
from ._objective import Objective
from ._perturbations import (
    Perturbations,
    antithetic,
    check_perturbations,
    draw_noise,
    pair_weights,
    weighted,
)
from ._problem import Bilevel


def full_es(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 8,
    std: float = 0.01,
    objective: Objective = Objective(),  # noqa: B008  an immutable NamedTuple
    clip: float | None = None,
    sign: float | None = None,
) -> MetaGradient:
    r"""Antithetic evolution strategies over whole inner runs.

    .. math:: g = \frac{1}{2 \sigma^2 N} \sum_{i=1}^N \epsilon_i
              (J(\theta + \epsilon_i) - J(\theta - \epsilon_i)), \quad
              E\,g = \nabla\, E\,J(\theta + \epsilon)

    Every call trains N antithetic pairs from beginning to end, all of one length drawn
    from the schedule. The state is empty. VeLO's estimator is this with
    `Objective(split="train", over="last", samples=100)` and `sign=1`.

    Args:
      problem: what theta is; `learn_optimizer(optimizer, family)`.
      schedule: draws the length of the call.
      particles: N, the number of antithetic pairs.
      std: sigma, standard deviation of the perturbations of theta.
      objective: J; the mean training loss by default.
      clip, sign: bound, or replace by its sign, the difference of a pair; both bias the
        gradient, see `Perturbations`.

    Raises:
      ValueError: a number out of range, or an unknown objective.

    Example:
      >>> import jax, l2o
      >>> from l2o.meta_train import constant, full_es, learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
      >>> estimator = full_es(problem, constant(20))
      >>> theta = problem.init_theta(jax.random.key(0))
      >>> grad, state, info = jax.jit(estimator.estimate)(
      ...     jax.random.key(2), theta, (), problem.data, 0
      ... )

    Source: "Evolution strategies as a scalable alternative to reinforcement learning"
    (Salimans et al., 2017); VeLO (Metz et al., 2022).
    """
    perturbations = Perturbations(std, clip, sign)
    check_perturbations(perturbations)
    full_unroll = make_full_unroll(problem, schedule, objective, particles=particles)

    def estimate(key, theta, state, data, step=0):
        k_noise, k_runs = jax.random.split(key)
        noise = draw_noise(problem, k_noise, theta, particles, std)
        result = full_unroll(k_runs, antithetic(theta, noise), data, step)
        weight, finite = pair_weights(result.terms, result.divisor, perturbations)
        return weighted(weight, noise), state, full_info(result, finite)

    return MetaGradient(lambda key, theta: (), estimate, ())
