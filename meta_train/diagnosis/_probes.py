"""What surrounds theta: the dynamics of inner training, the meta-loss along lines."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..estimators._episodes import spread
from ..estimators._full import make_full_unroll
from ..estimators._objective import Objective
from ..estimators._problem import Bilevel
from ..estimators._unroll import inner_init, inner_step
from ._dynamics import growth, largest_singular_value, spectral_radius
from ._settings import Diagnosis, as_told

_SCALES = (1.0, 10.0)  # of the slices, in perturbations


class Dynamics(NamedTuple):
    """Of the map from one inner state (parameters and optimizer) to the next."""

    growth: np.ndarray  # (runs, T): log |J_t v_t|
    burn_in: int  # steps that do not count in the exponents
    exponents: np.ndarray  # (runs,): leading Lyapunov exponent per step
    steps: np.ndarray  # (3,): where the rest is measured
    spectral_radius: np.ndarray  # (runs, 3)
    singular_value: np.ndarray  # (runs, 3): the largest

    @property
    def exponent(self) -> tuple[float, float]:
        """Mean over runs, standard error."""
        error = np.std(self.exponents, ddof=1) / math.sqrt(len(self.exponents))
        return float(np.mean(self.exponents)), float(error)


def measure_dynamics(problem: Bilevel, theta: Any, config: Diagnosis) -> Dynamics:
    """Exponents of `config.runs` runs as long as the longest episode."""
    length = config.lengths[-1]
    third = -(-length // 3)

    def one(key, theta, data):
        k_config, _, k_init, k_steps = jax.random.split(key, 4)
        tx, task = problem.inner(theta, problem.sample(k_config), data, length)

        def step(state):
            inner, t = state
            inner, _, _ = inner_step(tx, task, inner, jax.random.fold_in(k_steps, t))
            return inner, t + 1

        def stretch(state, key):
            state = jax.lax.fori_loop(0, third, lambda _, s: step(s), state)
            radius = spectral_radius(step, state, key)
            return state, (radius, largest_singular_value(step, state, key))

        # The first state does not depend on theta; roots of zero accumulators, of which
        # it is full, have no derivative.
        state = step((inner_init(tx, task, k_init), jnp.int32(0)))
        logs, _ = growth(step, state, key, length)
        _, (radius, singular) = jax.lax.scan(stretch, state, jax.random.split(key, 3))
        return logs, radius, singular

    keys = jax.random.split(jax.random.key(config.seed), config.runs)
    logs, radius, singular = jax.device_get(
        jax.jit(jax.vmap(one, in_axes=(0, None, None)))(keys, theta, problem.data)
    )
    burn_in = length // 4
    return Dynamics(
        growth=logs,
        burn_in=burn_in,
        exponents=logs[:, burn_in:].mean(-1),
        steps=1 + third * np.arange(1, 4),
        spectral_radius=radius,
        singular_value=singular,
    )


class Slice(NamedTuple):
    """The meta-loss along a line through theta, the same runs at every point."""

    length: int
    direction: str  # random 1, random 2, gradient
    offsets: np.ndarray  # in units of a perturbation's typical size, std sqrt(d)
    losses: np.ndarray


def measure_slices(
    problem: Bilevel, theta: Any, config: Diagnosis, gradients: Mapping[int, np.ndarray]
) -> list[Slice]:
    """Through theta, at the shortest and the longest length."""
    flat, unravel = ravel_pytree(theta)
    full_unroll = make_full_unroll(
        problem, as_told(config), Objective(), particles=config.runs
    )
    key = jax.random.key(config.seed)

    @jax.jit
    def losses(points, data, length):
        def loss(point):
            thetas = spread(unravel(point), 1, config.runs)
            result = full_unroll(key, thetas, data, length)
            return jnp.mean(jnp.sum(result.terms, -1) / result.divisor)

        return jax.lax.map(loss, points)

    trains = jax.tree.map(
        lambda keep, x: jnp.full(x.shape, float(keep), x.dtype),
        problem.trainable(theta),
        theta,
    )
    random = jax.random.normal(key, (2, flat.size)) * ravel_pytree(trains)[0]
    offsets = np.linspace(-1, 1, config.points)
    slices = []
    for length in dict.fromkeys((config.lengths[0], config.lengths[-1])):
        directions = {
            "random 1": random[0],
            "random 2": random[1],
            "gradient": jnp.asarray(gradients[length], flat.dtype),
        }
        for scale in _SCALES:
            for name, v in directions.items():
                # As long as a perturbation is on average.
                size = jnp.maximum(jnp.linalg.norm(v), 1e-30)
                v = v / size * math.sqrt(flat.size) * config.std
                points = flat + scale * offsets[:, None].astype(flat.dtype) * v
                values = losses(points, problem.data, jnp.int32(length))
                slices.append(Slice(length, name, scale * offsets, np.asarray(values)))
    return slices
