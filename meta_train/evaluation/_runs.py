"""Runs of entrants on tasks: those that a store does not have yet."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.tasks import Split, TaskFamily, TaskSpec

from ._curves import learning_curve
from ._entrants import OWN, Entrant
from ._store import VERSION, Result, Store, decode, encode, key_of

SPLITS: tuple[Split, ...] = ("train", "outer_valid", "test")


class Protocol(NamedTuple):
    """What a run is, whoever competes.

    Attributes:
      suite, suite_version: where the tasks are from.
      steps: of inner training.
      seeds: each draws a task of its family, initial parameters and batches, the same
        for all entrants.
      eval_every, eval_batches: as in `learning_curve`.
    """

    suite: str
    suite_version: int
    steps: int
    seeds: int
    eval_every: int
    eval_batches: int


class Job(NamedTuple):
    """Trials of one entrant on one task.

    Attributes:
      entrant: the optimizer.
      task: its name.
      spec: the task as data, or a family of one's own.
      rates: a learning rate per trial; None for what takes none.
    """

    entrant: Entrant
    task: str
    spec: TaskSpec | TaskFamily
    rates: tuple[float | None, ...]


def setting_of(job: Job, rate: float | None, protocol: Protocol) -> dict[str, Any]:
    """All that the curves of a trial depend on."""
    return {
        "version": VERSION,
        "task": job.task,
        "spec": job.spec.digest() if isinstance(job.spec, TaskSpec) else None,
        "identity": dict(job.entrant.identity),
        "rate": rate,
        **protocol._asdict(),
    }


def run_jobs(
    jobs: Sequence[Job],
    protocol: Protocol,
    store: Store | None,
    *,
    on_progress: Callable[[Job, int], None] = lambda job, trials: None,
    workers: int | None = None,
) -> list[Result]:
    """The results of all trials; what the store lacks is run and put there.

    Where its folder has a trial with fewer seeds, only the others are run.

    Args:
      jobs: what to run, the most important first.
      protocol: how.
      store: where results are kept and, but for transformations and families of one's
        own, which no hash can tell from others, looked for.
      on_progress: called with every job that is done and how many trials were run.
      workers: jobs at a time; by default one per core, because a program of small
        models keeps no more than one busy.

    Returns:
      Per job and rate, in that order.
    """
    known = [_known(job, protocol, store) for job in jobs]
    families: dict[str, TaskFamily] = {}
    for job, found in zip(jobs, known, strict=True):
        if job.task not in families and len(found) < len(job.rates):
            families[job.task] = _checked(job.spec)

    def do(job: Job, found: dict[float | None, Result]) -> list[Result]:
        missing = [rate for rate in job.rates if rate not in found]
        begun = {rate: _begun(job, rate, protocol, store) for rate in missing}
        for first in sorted({_seeds(x) for x in begun.values()}):
            rates = [rate for rate in missing if _seeds(begun[rate]) == first]
            seeds = range(first, protocol.seeds)
            for result in _run(job, families[job.task], rates, seeds, protocol):
                before = begun[result.rate]
                whole = result if before is None else _joined(before, result)
                # Rounded as in a store, so that nothing depends on where it comes from.
                whole = decode(encode(whole))
                found[result.rate] = whole
                if store:
                    store.put(whole)
        on_progress(job, len(missing))
        # Under this name, whatever it was called when it was run.
        name = job.entrant.name
        return [dataclasses.replace(found[x], entrant=name) for x in job.rates]

    # Threads: what XLA runs does not hold the interpreter.
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        futures = [pool.submit(do, *x) for x in zip(jobs, known, strict=True)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [result for future in futures for result in future.result()]


def _known(
    job: Job, protocol: Protocol, store: Store | None
) -> dict[float | None, Result]:
    """By rate what the store has."""
    if store is None or not _is_named(job):
        return {}
    every = {
        rate: store.get(key_of(setting_of(job, rate, protocol))) for rate in job.rates
    }
    return {rate: result for rate, result in every.items() if result is not None}


def _begun(
    job: Job, rate: float | None, protocol: Protocol, store: Store | None
) -> Result | None:
    """What the store's own folder has of it with fewer seeds, the most of them."""
    if store is None or not _is_named(job):
        return None
    for seeds in range(protocol.seeds - 1, 0, -1):
        setting = setting_of(job, rate, protocol._replace(seeds=seeds))
        found = store.get(key_of(setting), own=True)
        if found is not None:
            return found
    return None


def _is_named(job: Job) -> bool:
    return isinstance(job.spec, TaskSpec) and OWN not in job.entrant.identity


def _seeds(result: Result | None) -> int:
    return 0 if result is None else result.setting["seeds"]


def _joined(before: Result, rest: Result) -> Result:
    """The first seeds and the others of one trial; `rest` has the setting of all."""
    count, all_of_them = _seeds(before), _seeds(rest)
    more = all_of_them - count
    seconds = (count * before.seconds + more * rest.seconds) / all_of_them
    curves = jax.tree.map(
        lambda x, y: np.concatenate([x, y]), before.curves, rest.curves
    )
    return dataclasses.replace(rest, curves=curves, seconds=seconds)


def _checked(spec: TaskSpec | TaskFamily) -> TaskFamily:
    """The family; that it has batches of every split is found out before a run."""
    family = spec if isinstance(spec, TaskFamily) else spec.family()

    def batches(key, data):
        task = family.task(family.sample(key), data)
        return [task.batch(key, split) for split in SPLITS]

    jax.eval_shape(batches, jax.random.key(0), family.data)
    return family


def _run(
    job: Job,
    family: TaskFamily,
    rates: Sequence[float | None],
    seeds: range,
    protocol: Protocol,
) -> Iterator[Result]:
    """A result per rate, of these seeds, as soon as it is there."""
    entrant = job.entrant
    # One after the other a rate is done before the next begins, and kept if it stops.
    parts = [list(rates)] if side_by_side() else [[rate] for rate in rates]

    def tx_of(rate):
        return optax.with_extra_args_support(entrant.make(rate, protocol.steps))

    def one(run: tuple[jax.Array, jax.Array], data: Any) -> Any:
        rate, seed = run
        return learning_curve(
            tx_of(rate),
            family,
            data,
            jax.random.key(seed),
            steps=protocol.steps,
            eval_every=protocol.eval_every,
            eval_batches=protocol.eval_batches,
            splits=SPLITS,
            extra=entrant.extra,
            final=entrant.final,
        )

    @jax.jit
    def all_runs(rates: jax.Array, seeds: jax.Array, data: Any) -> Any:
        runs = (jnp.repeat(rates, len(seeds)), jnp.tile(seeds, len(rates)))
        each = jax.vmap if side_by_side() else _one_by_one
        return each(lambda run: one(run, data))(runs)

    numbers = [jnp.array([x or 0.0 for x in part]) for part in parts]
    # Arguments, so that other seeds are no other program.
    every = jnp.array(seeds)
    compiled = all_runs.lower(numbers[0], every, family.data).compile()
    params = jax.eval_shape(params_of(family), jax.random.key(0), family.data)
    state = jax.eval_shape(tx_of(numbers[0][0]).init, params)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    bytes_ = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    for part, given in zip(parts, numbers, strict=True):
        start = time.perf_counter()
        curves = jax.tree.map(np.asarray, compiled(given, every, family.data))
        seconds = time.perf_counter() - start
        for i, rate in enumerate(part):
            mine = slice(i * len(seeds), (i + 1) * len(seeds))
            yield Result(
                setting=setting_of(job, rate, protocol),
                entrant=entrant.name,
                learned=entrant.learned,
                curves=jax.tree.map(lambda x, mine=mine: x[mine], curves),
                state_bytes=bytes_ / parameters,
                parameters=parameters,
                seconds=seconds / (len(part) * len(seeds) * protocol.steps),
                origin=origin(),
            )


def side_by_side() -> bool:
    """Whether seeds and rates are one vectorised program, as accelerators need.

    On a CPU small models gain nothing by it, and what is conditional (a line search, a
    Hessian now and then) would be computed always.
    """
    return jax.default_backend() != "cpu"


def _one_by_one(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda xs: jax.lax.map(f, xs)


def params_of(family: TaskFamily) -> Callable[[jax.Array, Any], Any]:
    def params(key, data):
        return family.task(family.sample(key), data).init(key)[0]

    return params


def origin() -> Mapping[str, Any]:
    """Code, machine and time of a result."""
    return {
        "l2o": metadata.version("l2o"),
        "jax": jax.__version__,
        "optax": optax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
