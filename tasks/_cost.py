"""What an inner step of a task costs, by XLA's count and by the clock."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.files import plain, write_json

from ._base import TaskFamily
from ._spec import TaskSpec

_STEPS, _REPEATS = 10, 5


class Cost(NamedTuple):
    """Of one inner step: drawing a batch, loss and gradient, one step of SGD.

    Attributes:
      parameters: of the model.
      flops: floating-point operations as XLA counts them in the optimised program. The
        body of a loop (recurrent models, evolution strategies) counts once.
      bytes: read and written, counted likewise.
      seconds: the median of 5 timings of 10 steps on this machine, per step; None if it
        was not measured.
    """

    parameters: int
    flops: float
    bytes: float
    seconds: float | None = None


def step_cost(family: TaskFamily, *, measure: bool = False) -> Cost:
    """Compiles an inner step of a family, and times it if asked.

    Example:
      >>> from l2o.tasks import quadratic, step_cost
      >>> step_cost(quadratic(10)).parameters
      10
    """
    key = jax.random.key(0)

    def start(data):
        return family.task(family.sample(key), data).init(key)

    def step(state, key, data):
        params, model_state = state
        task = family.task(family.sample(jax.random.key(0)), data)
        k_batch, k_loss = jax.random.split(key)
        batch = task.batch(k_batch, "train")
        grads, (model_state, _) = jax.grad(task.loss, has_aux=True)(
            params, model_state, k_loss, batch
        )
        params = jax.tree.map(
            lambda p, g: p - jnp.asarray(1e-4, p.dtype) * g, params, grads
        )
        return (params, model_state), None

    state = jax.eval_shape(start, family.data)
    parameters = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state[0]))
    compiled = jax.jit(step).lower(state, key, family.data).compile()
    counted = compiled.cost_analysis() or {}
    cost = Cost(
        parameters,
        float(counted.get("flops", 0.0)),
        float(counted.get("bytes accessed", 0.0)),
    )
    if not measure:
        return cost

    @jax.jit
    def steps(state, key, data):
        keys = jax.random.split(key, _STEPS)
        return jax.lax.scan(lambda s, k: step(s, k, data), state, keys)[0]

    state = jax.block_until_ready(steps(jax.jit(start)(family.data), key, family.data))
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        state = jax.block_until_ready(steps(state, key, family.data))
        seconds.append((time.perf_counter() - begin) / _STEPS)
    return cost._replace(seconds=float(np.median(seconds)))


def spec_cost(spec: TaskSpec, *, measure: bool = False) -> Cost:
    """As `step_cost`, remembered on disk.

    One file per spec, version of JAX and kind of machine, in `$L2O_CACHE` or, without
    that, in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`) under `l2o`.

    Args:
      spec: its data are loaded if nothing is remembered.
      measure: time it, too, unless a time is remembered.
    """
    path = cache_folder() / "costs" / f"{_machine()}-{_unlabelled(spec)}.json"
    known = _remembered(path)
    if known is not None and (known.seconds is not None or not measure):
        return known
    cost = step_cost(spec.family(), measure=measure)
    # Where the cache cannot be written, it is measured again next time.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, plain(cost))
    return cost


def remembered_cost(spec: TaskSpec) -> Cost | None:
    """What `spec_cost` has found on a machine of this kind; None if it has not run.

    Args:
      spec: whose data are not loaded.
    """
    return _remembered(
        cache_folder() / "costs" / f"{_machine()}-{_unlabelled(spec)}.json"
    )


def within(
    *,
    parameters: float | None = None,
    tensors: int | None = None,
    flops: float | None = None,
    bytes: float | None = None,
    seconds: float | None = None,
) -> Callable[[TaskSpec], bool]:
    """What `sample_spec` accepts under a budget per inner step.

    Args:
      parameters, flops, bytes, seconds: upper bounds, see `Cost`; None for none, but
        10^7 for the parameters. Only `seconds` runs anything; what has more parameters
        than half the flops is refused before it is compiled.
      tensors: upper bound on how many the parameters are; what a learned optimizer
        compiles grows with it.

    Example:
      >>> import jax
      >>> from l2o.tasks import sample_spec, within
      >>> spec = sample_spec(
      ...     jax.random.key(1), ["convex"], accept=within(parameters=50)
      ... )

    Source: VeLO's filter by step time (Metz et al., 2022), which used a learned model
    of it.
    """
    most = parameters if parameters is not None else 1e7
    if flops is not None:
        most = min(most, flops / 2)

    def accept(spec: TaskSpec) -> bool:
        sizes = _sizes(spec.family())
        if sum(sizes) > most or (tensors is not None and len(sizes) > tensors):
            return False
        if flops is bytes is seconds is None:
            return True
        cost = spec_cost(spec, measure=seconds is not None)
        return (
            (flops is None or cost.flops <= flops)
            and (bytes is None or cost.bytes <= bytes)
            and (seconds is None or (cost.seconds or 0.0) <= seconds)
        )

    return accept


def parameter_count(family: TaskFamily) -> int:
    """Of the model of a task; compiles nothing.

    Example:
      >>> from l2o.tasks import parameter_count, quadratic
      >>> parameter_count(quadratic(3))
      3
    """

    return sum(_sizes(family))


def _sizes(family: TaskFamily) -> list[int]:
    def params(key: jax.Array, data: Any) -> Any:
        return family.task(family.sample(key), data).init(key)[0]

    shapes = jax.eval_shape(params, jax.random.key(0), family.data)
    return [int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)]


def _unlabelled(spec: TaskSpec) -> str:
    return dataclasses.replace(spec, label="").digest()


def _remembered(path: Path) -> Cost | None:
    try:
        return Cost(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # damaged, or of another version: found again


def cache_folder() -> Path:
    """Where measured costs and compiled programs are kept.

    It is `$L2O_CACHE`, or else `l2o` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if "L2O_CACHE" in os.environ:
        return Path(os.environ["L2O_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "l2o"


def _machine() -> str:
    """Of what a timing depends on."""
    device = jax.devices()[0]
    parts = [
        jax.__version__,
        device.platform,
        device.device_kind,
        platform.processor() or platform.machine(),
        str(os.cpu_count()),
    ]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]
