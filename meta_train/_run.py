"""The run loop: meta-train, checkpoint, resume, export."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import l2o
from l2o.tasks import TaskFamily, make_family, reparametrize

from ._checkpoints import Checkpoints, state_bytes
from ._config import OPERATIONAL, Config
from ._metrics import Metrics, ProgressBar
from ._outer import Outer, OuterInfo, make_outer_step, outer_optimizer
from ._es import pes
from ._problem import learn_optimizer
from ._schedules import log_uniform

_IN_FLIGHT = 4  # outer steps dispatched ahead of the one whose numbers are read


class Result(NamedTuple):
    """How a run ended."""

    theta: Any
    optimizer: l2o.LearnedOptimizer
    frozen: Path | None  # folder of the exported optimizer; None if interrupted
    completed: bool  # False: stopped by a signal, resume with the same call
    step: int  # outer steps made, over all sittings


def run(
    config: Config,
    out: str | os.PathLike,
    *,
    optimizer: l2o.LearnedOptimizer | None = None,
    families: Sequence[TaskFamily] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    console: Console | None = None,
) -> Result:
    """Meta-trains a learned optimizer and exports it to `out/frozen`.

    If `out` holds an unfinished run of the same configuration it is resumed, bit for
    bit; a finished one is not repeated. SIGTERM and Ctrl-C save a checkpoint and end
    the run.

    Args:
      config: what to do.
      out: folder for `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and
        `frozen/`.
      optimizer: in place of `config.optimizer`: one of your own.
      families: in place of `config.families`: your own task families; augmentation is
        then yours too.
      on_step: called with the record of every outer step, in order.
      console: where progress is shown; standard output by default.

    Raises:
      ValueError: `out` holds a run of another configuration; the message names the
        fields.
      OSError: `out` cannot be written or its disk is too full; before any compilation.

    Example:
      >>> import tempfile
      >>> from l2o.meta_train import Config, run
      >>> config = Config(families=("quadratic10",), outer_steps=2, outer_warmup=0)
      >>> result = run(config, tempfile.mkdtemp())  # doctest: +SKIP
    """
    out = Path(out)
    console = console or Console()
    optimizer = optimizer or l2o.make(config.optimizer, **config.optimizer_options)
    families = list(families) if families is not None else _families(config)
    start = None
    # Once there is a checkpoint, the weights started from may be gone.
    if config.start_from is not None and not any((out / "checkpoints").glob("*")):
        _, start = l2o.load_theta(config.start_from, optimizer=optimizer)
    started = _claim(out, config, optimizer, families)

    outer_tx = outer_optimizer(
        config.outer_lr,
        warmup=config.outer_warmup,
        steps=config.outer_steps,
        clip=config.outer_clip,
    )
    estimators = [
        pes(
            learn_optimizer(optimizer, family),
            log_uniform(*config.episode_length),
            particles=config.particles,
            truncation=config.truncation,
            std=config.std,
            max_offset=config.episode_length[1],
        )
        for family in families
    ]
    k_theta, k_run, *k_workers = jax.random.split(
        jax.random.key(config.seed), 2 + len(families)
    )
    theta = optimizer.init_theta(k_theta)
    if start is not None:
        theta = start
    outer = Outer(theta, outer_tx.init(theta), jnp.int32(0), k_run)
    workers = [
        estimator.init(key, theta)
        for estimator, key in zip(estimators, k_workers, strict=True)
    ]
    # Copied, because the outer step donates it and two leaves may share a buffer.
    state = jax.tree.map(jnp.array, (outer, workers))
    _check_space(out, state, config.keep_checkpoints)

    checkpoints = Checkpoints(out / "checkpoints", config.keep_checkpoints)
    counters = {"seconds": 0.0, "inner_steps": 0, "nonfinite": 0, "skipped": 0}
    step = 0
    if checkpoints.latest() is not None:
        step, state, counters = checkpoints.restore(state)
        console.print(f"resuming {out} at outer step {step}", highlight=False)
    elif started:
        console.print(f"starting {out} again: it holds no checkpoint", highlight=False)

    step, state, completed = _loop(
        config,
        step,
        state,
        counters,
        [make_outer_step(estimator, outer_tx) for estimator in estimators],
        families,
        checkpoints,
        Metrics(out, step),
        console,
        on_step,
    )
    theta = state[0].theta
    frozen = None
    if completed:
        frozen = l2o.save(
            out / "frozen",
            optimizer,
            theta,
            card={
                "config": dataclasses.asdict(config),
                "task_families": [family.name for family in families],
                "outer_steps": step,
                "inner_steps": counters["inner_steps"],
                "seconds": round(counters["seconds"], 1),
                "nonfinite_pairs": counters["nonfinite"],
                "skipped_outer_steps": counters["skipped"],
                "device": jax.devices()[0].device_kind,
                "jax_version": jax.__version__,
            },
        )
    return Result(theta, optimizer, frozen, completed, step)


def _loop(
    config: Config,
    step: int,
    state: Any,
    counters: dict[str, float],
    outer_steps: Sequence[Callable],
    families: Sequence[TaskFamily],
    checkpoints: Checkpoints,
    metrics: Metrics,
    console: Console,
    on_step: Callable[[dict[str, Any]], None] | None,
) -> tuple[int, Any, bool]:
    """Runs outer steps until all are done or a signal arrives."""
    outer, workers = state
    bar = ProgressBar(config.outer_steps, step, console)
    pending: deque[tuple[int, int, OuterInfo]] = deque()
    clock = time.perf_counter()

    def read(keep: int) -> None:
        nonlocal clock
        while len(pending) > keep:
            number, family, info = pending.popleft()
            values = jax.device_get(info)  # waits for that step
            now = time.perf_counter()
            seconds, clock = now - clock, now
            record = _record(number, families[family].name, values, seconds)
            counters["seconds"] += seconds
            for name in ("inner_steps", "nonfinite", "skipped"):
                counters[name] += record[name]
            metrics.write(record)
            bar.update(number, record["meta_loss"], record["inner_steps"], seconds)
            if on_step is not None:
                on_step(record)

    def save() -> None:
        read(0)
        try:
            checkpoints.save(step, (outer, workers), dict(counters))
        except OSError as error:
            raise OSError(
                f"checkpoint {step} could not be written: {error}. The last good one "
                f"is {checkpoints.latest()}; make room and run again to resume"
            ) from error

    with contextlib.ExitStack() as stack:
        # In this order at the end: bar, metrics, checkpoints (which waits for a save).
        stack.callback(checkpoints.close)
        stack.callback(metrics.close)
        stack.callback(bar.close)
        stopped = stack.enter_context(_signals())
        if step < config.outer_steps:
            programs = _compile(outer_steps, outer, workers, families)
            clock = time.perf_counter()
        while step < config.outer_steps and not stopped.is_set():
            # A function of seed and step alone, so that a resumed run draws the same.
            draw = np.random.default_rng((config.seed, step))
            i = int(draw.integers(len(families)))
            outer, workers[i], info = programs[i](outer, workers[i], families[i].data)
            step += 1
            pending.append((step, i, info))
            read(_IN_FLIGHT)
            if step % config.checkpoint_every == 0:
                save()
        save()
    if stopped.is_set() and step < config.outer_steps:
        console.print(
            f"stopped by a signal at outer step {step}; the checkpoint is saved, run "
            "again to resume",
            highlight=False,
        )
    return step, (outer, workers), step == config.outer_steps


def _record(step: int, family: str, info: OuterInfo, seconds: float) -> dict[str, Any]:
    estimate = info.estimate
    return {
        "step": step,
        "family": family,
        "meta_loss": float(estimate.meta_loss),
        "gradient_norm": float(info.gradient_norm),
        "inner_steps": int(estimate.inner_steps),
        "episodes": int(estimate.episodes),
        "nonfinite": int(estimate.nonfinite),
        "skipped": int(info.skipped),
        "seconds": seconds,
    }


def _compile(
    outer_steps: Sequence[Callable],
    outer: Outer,
    workers: Sequence[Any],
    families: Sequence[TaskFamily],
) -> list[Callable]:
    """One program per family, compiled side by side."""

    def compile_one(i: int) -> Callable:
        jitted = jax.jit(outer_steps[i], donate_argnums=(0, 1))
        return jitted.lower(outer, workers[i], families[i].data).compile()

    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_one, range(len(families))))


def _families(config: Config) -> list[TaskFamily]:
    families = [make_family(name) for name in config.families]
    if config.reparam_level == "none":
        return families
    return [
        reparametrize(family, config.reparam_level, config.reparam_range)
        for family in families
    ]


def _claim(
    out: Path,
    config: Config,
    optimizer: l2o.LearnedOptimizer,
    families: Sequence[TaskFamily],
) -> bool:
    """Writes `config.json`, or holds it against the one that is there.

    Returns whether the folder already held this run.
    """
    content = {
        **dataclasses.asdict(config),
        "optimizer": optimizer.name,
        "optimizer_options": dict(optimizer.arguments),
        "families": [family.name for family in families],
    }
    content = json.loads(json.dumps(content))  # tuples as lists, as they come back
    path = out / "config.json"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} is not valid JSON ({error}); use another folder"
            ) from error
        changed = [
            f"{name}: {old.get(name)!r} there, {content.get(name)!r} now"
            for name in sorted({*old, *content} - set(OPERATIONAL))
            if old.get(name) != content.get(name)
        ]
        if not changed:
            return True
        # One that never came to its first step may be replaced: nothing is lost.
        if (out / "metrics.jsonl").exists():
            raise ValueError(
                f"{out} holds a run of another configuration ({'; '.join(changed)}); "
                "choose another folder, or the old configuration to resume"
            )
    elif any(out.iterdir()):
        raise ValueError(
            f"{out} is not empty and holds no run: choose a new folder for the output"
        )
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
    return False


def _check_space(out: Path, state: Any, keep: int) -> None:
    """Raises `OSError` where the checkpoints would not fit."""
    need = (keep + 1) * state_bytes(state) + 2**20
    free = shutil.disk_usage(out).free
    if free < need:
        raise OSError(
            f"{out} has {free / 2**20:.1f} MiB free; {keep} checkpoints need "
            f"{need / 2**20:.1f} MiB"
        )


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second SIGINT interrupts as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def handle(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # A signal that is ignored stays so: a shell's background job has no Ctrl-C.
    old = {
        number: signal.signal(number, handle)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
