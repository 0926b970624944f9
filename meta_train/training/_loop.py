"""The loop over outer steps: dispatch, read, checkpoint, stop."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console

from .._config import Config
from .._mesh import Topology, place, run_shardings
from .._processes import ProcessLost, processes_may_be_lost
from ._checkpoints import Checkpoints
from ._feed import Feed
from ._metrics import Meter, Metrics
from ._outer import OuterInfo
from ._population import exchange
from ._recipe import Part

_IN_FLIGHT = 4  # outer steps dispatched ahead of the one whose numbers are read
_MANY = 5  # programs that take so long to compile that one wants to see it
_SALT = 0xE8C4  # keeps exchanges apart from the run's other draws


class Devices(NamedTuple):
    """Where the programs run; no mesh is the default device."""

    mesh: Mesh | None
    topology: Topology

    def shardings(self, outer: Any, specs: Any) -> tuple[Any, Any, Any] | None:
        """Of (outer, worker, data)."""
        if self.mesh is None:
            return None
        return run_shardings(self.mesh, outer, specs, self.topology)

    def context(self) -> contextlib.AbstractContextManager:
        """In which programs are traced and called."""
        return (
            contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
        )


def loop(
    config: Config,
    step: int,
    state: Any,
    counters: dict[str, float],
    parts: Sequence[Part],
    numbers: dict[str, jax.Array],
    devices: Devices,
    checkpoints: Checkpoints,
    metrics: Metrics | None,
    console: Console,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> tuple[int, Any, str | None]:
    """Runs outer steps until all are done, a signal arrives or too many are skipped.

    Returns the step, the state and, in the last case, what happened. `metrics` is None
    in the processes that do not write them.

    Raises:
      ProcessLost: another process of the run is gone.
    """
    outer, workers = state
    meter = Meter(config.outer_steps, step, console)
    feeds = _feeds(parts, outer, devices, counters)
    flight = _Flight(parts, counters, metrics, meter, on_step)

    def save() -> None:
        flight.land(0)
        with processes_may_be_lost():
            checkpoints.save(step, (outer, workers), dict(counters))

    with contextlib.ExitStack() as stack:
        # Checkpoints are closed last, because that waits for a save.
        written = [checkpoints] if metrics is None else [checkpoints, metrics]
        stopped = _entered(stack, devices, [*written, *feeds, meter])
        exchange_ = _exchange(outer, workers, parts, devices)
        if step < config.outer_steps:
            programs = _compile(parts, outer, workers, numbers, devices, console)
            flight.start_clock()
        while (
            step < config.outer_steps
            and not stopped(step)
            and not _diverged(config, counters)
        ):
            # A function of seed and step alone, so that a resumed run draws the same.
            draw = np.random.default_rng((config.seed, step))
            i = int(draw.integers(len(parts)))
            data = feeds[i].take()
            with processes_may_be_lost():
                outer, workers[i], info = programs[i](outer, workers[i], data, numbers)
            del data  # or one more window than is in flight would stay
            step += 1
            flight.add(step, i, info)
            flight.land(_IN_FLIGHT)
            # Where those in flight could reach the limit, none may be dispatched past.
            if counters["skipped_in_a_row"] + len(flight) >= config.skip_limit:
                flight.land(0)
            if config.population > 1 and step % config.exchange_every == 0:
                key = jax.random.fold_in(jax.random.key(config.seed), _SALT + step)
                outer, workers = exchange_(key, outer, workers)
            if _due(config, step):
                save()
        save()
        with processes_may_be_lost():
            checkpoints.wait()
    return step, (outer, workers), _ending(config, step, counters, console)


def _entered(
    stack: contextlib.ExitStack, devices: Devices, opened: Sequence[Any]
) -> Callable[[int], bool]:
    """As `_signals`; at the end of the stack all that is open is closed, backwards."""
    for each in opened:
        stack.callback(each.close)
    stopped = stack.enter_context(_signals())
    stack.enter_context(devices.context())
    # Without the lost one, nobody would ever answer what these wait for.
    stack.push(lambda kind, error, trace: _abandon(stack, error))
    return stopped


class _Flight:
    """Outer steps that are dispatched, until their numbers are read and told."""

    def __init__(
        self,
        parts: Sequence[Part],
        counters: dict[str, float],
        metrics: Metrics | None,
        meter: Meter,
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self._parts, self._counters = parts, counters
        self._metrics, self._meter, self._on_step = metrics, meter, on_step
        self._pending: deque[tuple[int, int, OuterInfo]] = deque()
        self.start_clock()

    def __len__(self) -> int:
        return len(self._pending)

    def start_clock(self) -> None:
        """What was before is no step's time."""
        self._clock = time.perf_counter()

    def add(self, step: int, part: int, info: OuterInfo) -> None:
        """A step of the part of this number, with what the device will tell of it."""
        self._pending.append((step, part, info))

    def land(self, keep: int) -> None:
        """Reads the oldest, until there are `keep`."""
        while len(self._pending) > keep:
            step, part, info = self._pending.popleft()
            with processes_may_be_lost():
                values = jax.device_get(info)  # waits for that step
            now = time.perf_counter()
            seconds, self._clock = now - self._clock, now
            self._tell(_record(step, self._parts[part].name, values, seconds))

    def _tell(self, record: dict[str, Any]) -> None:
        counters, seconds = self._counters, record["seconds"]
        counters["seconds"] += seconds
        for name in ("inner_steps", "nonfinite", "skipped"):
            counters[name] += record[name]
        in_a_row = counters["skipped_in_a_row"] + 1
        counters["skipped_in_a_row"] = in_a_row if record["skipped"] else 0
        if self._metrics is not None:
            self._metrics.write(record)
        self._meter.update(
            record["step"], record["meta_loss"], record["inner_steps"], seconds
        )
        if self._on_step is not None:
            self._on_step(record)


def _due(config: Config, step: int) -> bool:
    """Whether there is a checkpoint after this step."""
    return any(
        step % every == 0
        for every in (config.checkpoint_every, config.keep_every)
        if every is not None
    )


def _diverged(config: Config, counters: dict[str, float]) -> bool:
    return counters["skipped_in_a_row"] >= config.skip_limit


def _ending(
    config: Config, step: int, counters: dict[str, float], console: Console
) -> str | None:
    """What happened where too many steps were skipped; a signal is told at once."""
    if step < config.outer_steps and _diverged(config, counters):
        return (
            f"the last {config.skip_limit} of {step} outer steps had no finite "
            "meta-gradient"
        )
    if step < config.outer_steps:
        console.print(
            f"stopped by a signal at outer step {step}; the checkpoint is saved, run "
            "again to resume",
            highlight=False,
            soft_wrap=True,
        )
    return None


def _record(step: int, family: str, info: OuterInfo, seconds: float) -> dict[str, Any]:
    """Of a population, means and sums over the members, and each one's meta-loss."""
    estimate = info.estimate
    record = {
        "step": step,
        "family": family,
        "meta_loss": float(np.mean(estimate.meta_loss)),
        "gradient_norm": float(np.mean(info.gradient_norm)),
        "inner_steps": int(np.sum(estimate.inner_steps)),
        "episodes": int(np.sum(estimate.episodes)),
        "nonfinite": int(np.sum(estimate.nonfinite)),
        "skipped": int(np.all(info.skipped)),
        "seconds": seconds,
    }
    if np.ndim(estimate.meta_loss):
        record["member_meta_loss"] = np.asarray(estimate.meta_loss).tolist()
    return record


def _compile(
    parts: Sequence[Part],
    outer: Any,
    workers: Sequence[Any],
    numbers: dict[str, jax.Array],
    devices: Devices,
    console: Console,
) -> list[Callable]:
    """One program per part, compiled side by side."""
    done = itertools.count(1)

    def compile_one(i: int) -> Callable:
        start = time.perf_counter()
        where = devices.shardings(outer, parts[i].specs)
        given: dict[str, Any] = {}
        if where is not None:
            everywhere = where[2]  # replicated, as the data are
            given = {"in_shardings": (*where, everywhere), "out_shardings": where}
        jitted = jax.jit(parts[i].step, donate_argnums=(0, 1), **given)
        with devices.context():  # which belongs to a thread
            arguments = (outer, workers[i], parts[i].data, numbers)
            program = jitted.lower(*arguments).compile()
        if len(parts) >= _MANY:
            seconds = time.perf_counter() - start
            console.print(
                f"compiled {next(done)}/{len(parts)}: {parts[i].name}, {seconds:.0f} s",
                highlight=False,
            )
        return program

    # One per core: a compilation may take gigabytes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, range(len(parts))))


def _feeds(
    parts: Sequence[Part], outer: Any, devices: Devices, counters: dict[str, float]
) -> list[Feed]:
    """The data of every part; those counted by `counters` go on from there."""

    def putter(part: Part) -> Callable[[Any], Any]:
        where = devices.shardings(outer, part.specs)
        return jax.device_put if where is None else lambda x: place(x, where[2])

    return [
        Feed(part.data, part.stream, putter(part), counters, f"chunks/{i}")
        for i, part in enumerate(parts)
    ]


def _exchange(
    outer: Any, workers: Sequence[Any], parts: Sequence[Part], devices: Devices
) -> Callable:
    """`exchange`, compiled where it is called first."""
    given: dict[str, Any] = {}
    if devices.mesh is not None:
        where = [devices.shardings(outer, part.specs) for part in parts]
        given = {"out_shardings": (where[0][0], [w[1] for w in where])}  # type: ignore[index]
    return jax.jit(exchange, donate_argnums=(1, 2), **given)


def _abandon(stack: contextlib.ExitStack, error: BaseException | None) -> bool:
    if isinstance(error, ProcessLost):
        stack.pop_all()
    return False


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
    """`step -> whether to stop before it`: after SIGTERM or SIGINT.

    A second SIGINT interrupts as usual. Several processes stop before the same step,
    whichever of them has got the signal: JAX passes SIGTERM on to all.
    """
    several = jax.process_count() > 1
    event = threading.Event()

    def stopped(step: int) -> bool:
        if several:
            return multihost_utils.reached_preemption_sync_point(step)
        return event.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handle(number: int, frame: Any) -> None:
        if several:
            os.kill(os.getpid(), signal.SIGTERM)
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # A signal that is ignored stays so: a shell's background job has no Ctrl-C.
    old = {
        number: signal.signal(number, handle)
        for number in ((signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT))
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
