"""What an update alone costs, beside Adam's."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..files._sealed import read_sealed, require, write_sealed
from ._entrants import OWN, Entrant
from ._store import DATABASES, key_of

_STEPS = 40
_FILE, _FORMAT, _VERSION = "timings.json", "l2o timings", 1
_REMEDY = "delete it, and `l2o evaluate` times again"


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


class _Content(TypedDict):
    timings: dict[str, list[float]]


def read_timings(folder: Path | None) -> dict[str, Timing]:
    """Those of a store's folder and those that came with the package, by key.

    Raises:
      ValueError: a file of them is damaged or was altered.
    """
    places = (DATABASES, "install l2o again"), (folder, _REMEDY)
    found: dict[str, Timing] = {}
    for place, remedy in places:
        if place is not None:
            found |= _read(place / _FILE, remedy)
    return found


def write_timings(folder: Path, timings: Mapping[str, Timing]) -> None:
    """Adds timings to those that a folder holds.

    Args:
      folder: made if it is missing.
      timings: by the key of what was timed.
    """
    path = folder / _FILE
    every = {**_read(path, _REMEDY), **timings}
    folder.mkdir(parents=True, exist_ok=True)
    content = {key: list(timing) for key, timing in sorted(every.items())}
    write_sealed(path, _FORMAT, _VERSION, {"timings": content})


def _read(path: Path, remedy: str) -> dict[str, Timing]:
    if not path.exists():
        return {}
    content = read_sealed(
        path, _FORMAT, _VERSION, remedy, schema=_Content, check=_check
    )
    return {key: timing_of(values) for key, values in content["timings"].items()}


def _check(content: _Content) -> None:
    for values in content["timings"].values():
        timing_of(values)


def timing_of(values: Sequence[float]) -> Timing:
    """The `Timing` of its values; `ValueError` where they cannot be one's."""
    fits = len(values) == len(Timing._fields) and all(x > 0 for x in values)
    require(fits, f"a timing is {list(values)!r:.60}")
    ratio, low, high, n, parameters = values
    whole = isinstance(n, int) and isinstance(parameters, int)
    require(whole and low <= ratio <= high, f"a timing is {list(values)!r:.60}")
    return Timing(ratio, low, high, int(n), int(parameters))


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
