"""Meta-gradients of single episodes, of which means and variances are taken."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..estimators._problem import Bilevel
from ._settings import ESTIMATORS, Diagnosis, as_told

_BATCH = 32  # particles that are vectorised


class Samples(NamedTuple):
    """Calls of one estimator at one length, by unit: a particle, or a group of them."""

    gradients: np.ndarray  # (units, d): of the mean loss of an episode
    squares: np.ndarray  # (units,): mean over calls, each taken for the whole of them
    finite: np.ndarray  # (units,)
    inner_steps: int  # per unit
    calls: int
    group: int

    @property
    def mean(self) -> np.ndarray:
        """Of the finite units; zero if there are none."""
        return np.where(self.finite[:, None], self.gradients, 0.0).sum(0) / max(
            int(self.finite.sum()), 1
        )

    @property
    def variance(self) -> float:
        """Of one particle; infinite if fewer than two units are finite."""
        if self.finite.sum() < 2:
            return math.inf
        return float(
            self.group * np.sum(np.var(self.gradients[self.finite], 0, ddof=1))
        )


def sample_gradients(
    name: str, problem: Bilevel, theta: Any, config: Diagnosis
) -> dict[int, Samples]:
    """Episodes of one estimator at every length, in one compiled program."""
    kind = ESTIMATORS[name]
    arguments: dict[str, Any] = {"particles": kind.group}
    if kind.smoothed:
        arguments["std"] = config.std
    if kind.windowed:
        arguments["truncation"] = config.truncation
    estimator = kind.make(problem, as_told(config), **arguments)

    def episode(key, theta, data, length):
        calls = -(-length // config.truncation) if kind.windowed else 1

        def call(i, carry):
            state, gradient, squares, bad, steps = carry
            k_call = jax.random.fold_in(key, i)
            if not kind.draws:  # the runs of the others
                k_call = jax.random.split(k_call)[1]
            g, state, info = estimator.estimate(k_call, theta, state, data, length)
            g = ravel_pytree(g)[0]
            squares += jnp.sum(g**2)
            return (
                state,
                gradient + g,
                squares,
                bad + info.nonfinite,
                (steps + info.inner_steps),
            )

        # A window's value is a sum over its steps / K, also where the episode ends in
        # it: times K / T they add up to the mean over the episode.
        scale = config.truncation / length if kind.windowed else 1.0
        zeros = jnp.zeros_like(ravel_pytree(theta)[0])
        start = (estimator.init(key, theta), zeros, 0.0, 0, 0)
        _, gradient, squares, bad, steps = jax.lax.fori_loop(0, calls, call, start)
        return gradient * scale, squares * scale**2 * calls, bad == 0, steps

    batched = jax.jit(jax.vmap(episode, in_axes=(0, None, None, None)))
    units = config.particles // kind.group
    keys = jax.random.split(jax.random.key(config.seed), units)
    size = math.gcd(units, _BATCH // kind.group)
    result = {}
    for length in config.lengths:
        parts = [
            jax.device_get(
                batched(keys[i : i + size], theta, problem.data, jnp.int32(length))
            )
            for i in range(0, units, size)
        ]
        gradients, squares, finite, steps = map(
            np.concatenate, zip(*parts, strict=True)
        )
        gradients = gradients.astype(np.float64)
        finite = finite & np.isfinite(gradients).all(-1)
        result[length] = Samples(
            gradients=gradients,
            squares=squares.astype(np.float64),
            finite=finite,
            inner_steps=int(steps[0]),
            calls=-(-length // config.truncation) if kind.windowed else 1,
            group=kind.group,
        )
    return result
