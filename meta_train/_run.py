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
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

import l2o
from l2o.tasks import TaskFamily, make_family, reparametrize

from ._checkpoints import Checkpoints, restore, state_bytes, steps
from ._config import RESUMING, Config
from ._es import pes
from ._metrics import Metrics, ProgressBar
from ._outer import Outer, OuterInfo, make_outer_step, outer_optimizer
from ._problem import learn_optimizer
from ._schedules import log_uniform

_IN_FLIGHT = 4  # outer steps dispatched ahead of the one whose numbers are read


class Result(NamedTuple):
    """How a run ended."""

    theta: Any
    optimizer: l2o.LearnedOptimizer
    frozen: Path | None  # folder of the exported optimizer; None if a signal came
    completed: bool  # False: stopped by a signal or `skip_limit`; the same call resumes
    step: int  # outer steps made, over all sittings


def run(
    config: Config,
    out: str | os.PathLike,
    *,
    optimizer: l2o.LearnedOptimizer | None = None,
    families: Sequence[TaskFamily] | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    console: Console | None = None,
    override: bool = False,
) -> Result:
    """Meta-trains a learned optimizer and exports it to `out/frozen`.

    If `out` holds an unfinished run of the same configuration it is resumed, bit for
    bit, from the newest checkpoint that can be read; a finished one is not repeated.
    SIGTERM and Ctrl-C save a checkpoint and end the run. So does `config.skip_limit`,
    but then theta is exported too, with a card that says so under "stopped_early".

    Args:
      config: what to do.
      out: folder for `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/` and
        `frozen/`.
      optimizer: in place of `config.optimizer`: one of your own.
      families: in place of `config.families`: your own task families; augmentation is
        then yours too.
      on_step: called with the record of every outer step, in order.
      console: where progress is shown; standard output by default.
      override: resume under another configuration, where only fields differ that leave
        the state as it is, such as `outer_lr`; recorded in `config.json`.

    Raises:
      ValueError: `out` holds a run of another configuration (the message shows the
        fields), or checkpoints that cannot be read.
      OSError: `out` cannot be written or its disk is too full; before any compilation,
        or when it fills up later: what was written before stays, and the same call
        resumes.

    Example:
      >>> import tempfile
      >>> from l2o.meta_train import Config, run
      >>> config = Config(families=("quadratic10",), outer_steps=2, outer_warmup=0)
      >>> result = run(config, tempfile.mkdtemp())  # doctest: +SKIP
    """
    out = Path(out)
    console = console or Console()
    optimizer = optimizer or l2o.make(config.optimizer, **config.optimizer_options)
    if families is None:
        families = make_families(
            config.families, config.reparam_level, config.reparam_range
        )
    start = None
    # Once there is a checkpoint, the weights started from may be gone.
    if config.start_from is not None and not steps(out / "checkpoints"):
        _, start = l2o.load_theta(config.start_from, optimizer=optimizer)
    content = _content(config, optimizer, families)
    old = _claim(out, content, override)

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

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    counters = dict.fromkeys(
        ("seconds", "inner_steps", "nonfinite", "skipped", "skipped_in_a_row"), 0.0
    )
    step = 0
    restored = restore(out / "checkpoints", state, aside=out / "unreadable", report=say)
    if restored is not None:
        step, state, counters = restored
        say(f"resuming {out} at outer step {step}")
    elif old is not None:
        say(f"starting {out} again: it holds no checkpoint")
    if step > config.outer_steps:
        raise ValueError(
            f"{out} has made {step} outer steps, more than outer_steps "
            f"({config.outer_steps}); give at least as many, or another folder"
        )
    overrides = _record_overrides(out, content, old, step, say)
    _check_space(out, state, config.keep_checkpoints)
    if counters["skipped_in_a_row"] >= config.skip_limit:
        counters["skipped_in_a_row"] = 0.0  # it has stopped once; another try

    step, state, stopped_early = _loop(
        config,
        step,
        state,
        counters,
        [make_outer_step(estimator, outer_tx) for estimator in estimators],
        families,
        Checkpoints(out / "checkpoints", config.keep_checkpoints, config.keep_every),
        Metrics(out, step),
        console,
        on_step,
    )
    theta = state[0].theta
    completed = step == config.outer_steps
    frozen = None
    if completed or stopped_early:
        card = {
            "config": dataclasses.asdict(config),
            "task_families": [family.name for family in families],
            "outer_steps": step,
            "inner_steps": int(counters["inner_steps"]),
            "seconds": round(counters["seconds"], 1),
            "nonfinite_pairs": int(counters["nonfinite"]),
            "skipped_outer_steps": int(counters["skipped"]),
            "device": jax.devices()[0].device_kind,
            "jax_version": jax.__version__,
        }
        if overrides:
            card["overrides"] = overrides
        if stopped_early:
            card["stopped_early"] = stopped_early
        try:
            frozen = l2o.save(out / "frozen", optimizer, theta, card=card)
        except OSError as error:
            raise OSError(
                f"{out / 'frozen'} could not be written: {error}. Make room and run "
                "again to export"
            ) from error
    if stopped_early:
        say(
            f"stopped early: {stopped_early}. Theta as it was before them is in "
            f"{frozen}; run again to try on, or start in another folder with a smaller "
            "outer_lr or std"
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
) -> tuple[int, Any, str | None]:
    """Runs outer steps until all are done, a signal arrives or too many are skipped.

    Returns the step, the state and, in the last case, what happened.
    """
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
            in_a_row = counters["skipped_in_a_row"] + 1
            counters["skipped_in_a_row"] = in_a_row if record["skipped"] else 0
            metrics.write(record)
            bar.update(number, record["meta_loss"], record["inner_steps"], seconds)
            if on_step is not None:
                on_step(record)

    def save() -> None:
        read(0)
        checkpoints.save(step, (outer, workers), dict(counters))

    def due() -> bool:
        return any(
            step % every == 0
            for every in (config.checkpoint_every, config.keep_every)
            if every is not None
        )

    def diverged() -> bool:
        return counters["skipped_in_a_row"] >= config.skip_limit

    with contextlib.ExitStack() as stack:
        # In this order at the end: bar, metrics, checkpoints (which waits for a save).
        stack.callback(checkpoints.close)
        stack.callback(metrics.close)
        stack.callback(bar.close)
        stopped = stack.enter_context(_signals())
        if step < config.outer_steps:
            programs = _compile(outer_steps, outer, workers, families)
            clock = time.perf_counter()
        while step < config.outer_steps and not stopped.is_set() and not diverged():
            # A function of seed and step alone, so that a resumed run draws the same.
            draw = np.random.default_rng((config.seed, step))
            i = int(draw.integers(len(families)))
            outer, workers[i], info = programs[i](outer, workers[i], families[i].data)
            step += 1
            pending.append((step, i, info))
            read(_IN_FLIGHT)
            # Where those in flight could reach the limit, none may be dispatched past.
            if counters["skipped_in_a_row"] + len(pending) >= config.skip_limit:
                read(0)
            if due():
                save()
        save()
        checkpoints.wait()
    if step < config.outer_steps and diverged():
        reason = (
            f"the last {config.skip_limit} of {step} outer steps had no finite "
            "meta-gradient"
        )
        return step, (outer, workers), reason
    if step < config.outer_steps:
        console.print(
            f"stopped by a signal at outer step {step}; the checkpoint is saved, run "
            "again to resume",
            highlight=False,
        )
    return step, (outer, workers), None


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


def make_families(
    names: Sequence[str],
    level: Literal["none", "global", "tensor", "parameter"],
    scale_range: tuple[float, float],
) -> list[TaskFamily]:
    """Families by name, augmented."""
    families = [make_family(name) for name in names]
    if level == "none":
        return families
    return [reparametrize(family, level, scale_range) for family in families]


def _content(
    config: Config, optimizer: l2o.LearnedOptimizer, families: Sequence[TaskFamily]
) -> dict[str, Any]:
    """What `config.json` holds."""
    content = {
        **dataclasses.asdict(config),
        "optimizer": optimizer.name,
        "optimizer_options": dict(optimizer.arguments),
        "task_families": [family.name for family in families],
    }
    return json.loads(json.dumps(content))  # tuples as lists, as they come back


def read_config(out: Path) -> dict[str, Any] | None:
    """A run's `config.json`, None without one.

    Raises:
      ValueError: it is not valid JSON.
    """
    path = out / "config.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); use another folder"
        ) from error


def _write_config(out: Path, content: dict[str, Any]) -> None:
    partial = out / "config.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(out / "config.json")


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and matter, as (old, new)."""
    return {
        name: (old.get(name), new.get(name))
        for name in sorted({*old, *new} - {"overrides"})
        if old.get(name) != new.get(name) and RESUMING.get(name) != "free"
    }


def _shown(changes: dict[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items()]


def _claim(out: Path, content: dict[str, Any], override: bool) -> dict[str, Any] | None:
    """Writes `config.json`, or holds it against the one that is there.

    Returns the latter where the folder already held this run.
    """
    out.mkdir(parents=True, exist_ok=True)
    old = read_config(out)
    if old is None and any(out.iterdir()):
        raise ValueError(
            f"{out} is not empty and holds no run: choose a new folder for the output"
        )
    changes = _changes(old, content) if old is not None else {}
    # One that never came to its first step may be replaced: nothing is lost.
    if old is None or (changes and not (out / "metrics.jsonl").exists()):
        _write_config(out, content)
        return None
    fixed = [name for name in changes if RESUMING.get(name) != "override"]
    if not changes or (override and not fixed):
        return old
    lines = "".join(f"\n  {line}" for line in _shown(changes))
    if fixed:
        remedy = (
            f"{', '.join(fixed)} cannot change in a run, with --override neither: "
            "choose another folder, or the old configuration to resume"
        )
    else:
        remedy = (
            "--override (in Python `override=True`) resumes with the new values; or "
            "choose another folder, or the old configuration"
        )
    raise ValueError(f"{out} holds a run of another configuration:{lines}\n{remedy}")


def _record_overrides(
    out: Path,
    content: dict[str, Any],
    old: dict[str, Any] | None,
    step: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Rewrites `config.json` where `_claim` let changes pass; all overrides so far."""
    if old is None:
        return []
    overrides = old.get("overrides", [])
    changes = _changes(old, content)
    if changes:
        for line in _shown(changes):
            say(f"from outer step {step} on, {line}")
        overrides = [*overrides, {"step": step, "changes": changes}]
        _write_config(out, {**content, "overrides": overrides})
    return overrides


def _check_space(out: Path, state: Any, keep: int) -> None:
    """Raises `OSError` where the checkpoints to come would not fit."""
    # Of those that are there already, the last ones make room for as many.
    count = max(keep + 1 - len(steps(out / "checkpoints")), 1)
    need = count * state_bytes(state) + 2**20
    free = shutil.disk_usage(out).free
    if free < need:
        raise OSError(
            f"{out} has {free / 2**20:.1f} MiB free; {count} more checkpoints need "
            f"{need / 2**20:.1f} MiB: make room or lower keep_checkpoints"
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
