"""What an update alone costs, beside Adam's."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._entrants import OWN, Entrant
from ._store import DATABASES, key_of

_STEPS = 40
_FILE = "timings.json"


class Timing(NamedTuple):
    """Time of an update over that of the Adam update before it.

    Attributes:
      ratio, low, high: median and quartiles over steps.
      n: steps.
      parameters: of the model whose gradients are given.
    """

    ratio: float
    low: float
    high: float
    n: int
    parameters: int


def time_updates(
    entrants: Sequence[Entrant], params: Any, *, steps: int = _STEPS
) -> dict[str, Timing]:
    """Per entrant its update of a model, taking turns with Adam's.

    Update and new parameters in one program, gradients given, buffers donated. Those
    that take more than a gradient (line searches, SAM) are left out.

    Args:
      entrants: what to time.
      params: the model.
      steps: of each.
    """
    adam = _Program(optax.adam(1e-3), params)
    count = sum(x.size for x in jax.tree.leaves(params))
    found = {}
    for entrant in entrants:
        rate = entrant.trials(1)[0]
        tx = entrant.make(jnp.float32(0.0 if rate is None else rate), 1000)
        try:
            program = _Program(tx, params)
        except (TypeError, ValueError):
            continue  # it needs more
        ratios = []
        for _ in range(steps + 3):
            baseline = adam.step()
            ratios.append(program.step() / baseline)
        low, middle, high = (
            float(f"{x:.3g}") for x in np.percentile(ratios[3:], (25, 50, 75))
        )
        found[entrant.name] = Timing(middle, low, high, steps, count)
    return found


def read_timings(folder: Path | None) -> dict[str, Timing]:
    """Those of a store's folder and those that came with the package, by key."""
    found: dict[str, Timing] = {}
    for place in (DATABASES, folder):
        if place is not None and (place / _FILE).exists():
            content = json.loads((place / _FILE).read_text())
            found |= {key: Timing(*timing) for key, timing in content.items()}
    return found


def write_timings(folder: Path, timings: Mapping[str, Timing]) -> None:
    """Adds to those of a folder."""
    path = folder / _FILE
    old = json.loads(path.read_text()) if path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**old, **timings}, indent=1, sort_keys=True) + "\n")


def timing_key(entrant: Entrant, parameters: int) -> str | None:
    """What a timing depends on, but the machine; None for what no hash can tell."""
    if OWN in entrant.identity:
        return None
    return key_of({"identity": dict(entrant.identity), "parameters": parameters})


class _Program:
    def __init__(self, tx: optax.GradientTransformation, params: Any) -> None:
        extended = optax.with_extra_args_support(tx)

        def step(params, state, grads):
            updates, state = extended.update(grads, state, params, value=1.0)
            return optax.apply_updates(params, updates), state

        self._grads = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), params)
        self._params = jax.tree.map(jnp.copy, params)
        self._state = jax.jit(extended.init)(params)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        self._step = jitted.lower(self._params, self._state, self._grads).compile()

    def step(self) -> float:
        """Makes one; returns its seconds."""
        start = time.perf_counter()
        new = self._step(self._params, self._state, self._grads)
        self._params, self._state = jax.block_until_ready(new)
        return time.perf_counter() - start
