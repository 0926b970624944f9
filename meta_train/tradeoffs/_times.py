"""The time of an update, beside that of Adam."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import l2o

from ._grid import reference
from ._program import chosen_backend, initial_state, update_program

_SKIP = 3  # first updates: they touch new memory
_LEAST = 3  # updates that are timed, however long they take
_SECONDS = 60.0  # after which no more are begun
MEMORY = 4e9  # bytes that an update may take


def time_update(
    optimizer: l2o.LearnedOptimizer, parameters: int, updates: int
) -> dict[str, Any]:
    """Times updates of one square matrix, taking turns with Adam's.

    Gradients are given, parameters and state donated, nothing else runs in the
    program.

    Args:
      optimizer: with theta as drawn: time does not depend on its value.
      parameters: of the matrix, about.
      updates: of each, fewer where they take long.

    Returns:
      `parameters`; `ratio`, `low`, `high`: median and quartiles of an update's seconds
      over those of the Adam update before it; `n` of them; `xla_ratio`, `xla_low`,
      `xla_high`: the same of plain JAX, equal where no kernel is used; `seconds` and
      `adam_seconds`, medians; `compile_seconds`, with tracing.
    """
    side = math.isqrt(parameters)
    adam, mine = (
        _Run(x, side, chosen_backend()) for x in (reference().optimizer, optimizer)
    )
    turns = [adam, mine]
    if mine.program.kernels:
        # Of two variants one may have kernels and the other not.
        turns += [adam, _Run(optimizer, side, "xla")]
    start, times = time.perf_counter(), []
    for i in range(_SKIP + updates):
        late = time.perf_counter() - start > _SECONDS
        if late and i >= _SKIP + _LEAST:
            break
        times.append([run.step() for run in turns])
    adams, own, *plain = np.array(times[_SKIP:]).T
    ratio = _quartiles(own / adams)
    plain_ratio = _quartiles(plain[1] / plain[0]) if plain else ratio
    return {
        "parameters": side**2,
        **ratio,
        **{f"xla_{key}": value for key, value in plain_ratio.items()},
        "n": len(own),
        "seconds": float(np.median(own)),
        "adam_seconds": float(np.median(adams)),
        "compile_seconds": mine.program.seconds,
    }


def _quartiles(ratios: np.ndarray) -> dict[str, float]:
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def memory(costs: Mapping[str, Any], parameters: int) -> float:
    """Bytes that timing an update takes: of Adam, of itself, of itself in plain JAX."""
    given, adam = 8, 8  # parameters and gradients; Adam's state
    own = given + costs["state_bytes"]
    temporary = max(costs["temporary_bytes"], costs["xla_temporary_bytes"])
    return (given + adam + 2 * own + temporary) * parameters


class _Run:
    def __init__(
        self, optimizer: l2o.LearnedOptimizer, side: int, backend: l2o.Backend
    ) -> None:
        self.program = update_program(optimizer, (side, side), backend)
        self._theta = optimizer.init_theta(jax.random.key(0))
        shape = side, side
        self._params = 0.1 * jax.random.normal(jax.random.key(1), shape)
        self._grads = 0.1 * jax.random.normal(jax.random.key(2), shape)
        self._state = initial_state(optimizer, self._theta, self._params)

    def step(self) -> float:
        """Makes one update; returns its seconds."""
        start = time.perf_counter()
        new = self.program.compiled(
            self._theta, self._params, self._state, self._grads, jnp.float32(1)
        )
        self._params, self._state = jax.block_until_ready(new)
        return time.perf_counter() - start
