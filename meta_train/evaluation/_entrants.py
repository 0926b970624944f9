"""What competes: baselines by name, and learned optimizers."""

import difflib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import l2o
from l2o._registry import changed, recorder

from .._unroll import value_only
from ._baselines import SCHEDULES, baselines, half_decades, scheduled_rate

OWN = "own"  # in an identity: results are written, but never found again


class Entrant(NamedTuple):
    """One way to train, as it competes.

    Attributes:
      name: in tables, such as "adamw+cosine".
      identity: what its runs depend on, but the rate; JSON can hold it.
      make: `(rate, steps) -> optax transformation`; the rate may be traced.
      space: rates in the order of trials; empty where nothing is tuned.
      tuned: what the rate is called.
      learned: whether it is a learned optimizer.
      extra, final: as in `learning_curve`.
      source: of the weights, as `l2o.load` takes it.
      card: of the weights.
    """

    name: str
    identity: Mapping[str, Any]
    make: Callable[[Any, int], optax.GradientTransformationExtraArgs]
    space: tuple[float, ...] = ()
    tuned: str = "learning_rate"
    learned: bool = False
    extra: Callable[..., dict[str, Any]] = value_only
    final: Callable[[Any, Any], Any] | None = None
    source: str | None = None
    card: Mapping[str, Any] | None = None

    def trials(self, count: int) -> tuple[float | None, ...]:
        """The rates of so many trials."""
        return self.space[:count] or (None,)


def entrant(text: str) -> Entrant:
    """The entrant that a text names.

    Args:
      text: NAME, NAME+SCHEDULE, NAME:RATE or NAME+SCHEDULE:RATE. NAME is one of
        `baselines` or weights as `l2o.load` takes them (a shipped name, a folder, a
        file of published weights); SCHEDULE is "cosine" for a warm-up and then a cosine
        to zero; with a RATE nothing is tuned.

    Raises:
      ValueError: none of that; the message suggests something.

    Example:
      >>> from l2o.meta_train.evaluation import entrant
      >>> entrant("adamw+cosine:0.003").space
      (0.003,)
    """
    name, schedule, rate = text, "constant", ""
    if not Path(text).exists():
        body, _, last = text.rpartition(":")
        if body and _is_number(last):
            name, rate = body, last
        name, _, asked = name.partition("+")
        schedule = asked or schedule
    if schedule not in SCHEDULES:
        raise ValueError(
            f"{text}: unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}"
        )
    kind = _baseline if name in baselines() else _learned
    made = kind(name, schedule)
    if rate:
        if not made.space:
            raise ValueError(f"{text}: {name} has no rate to give")
        made = made._replace(name=text, space=(float(rate),))
    return made


def of_transformation(name: str, tx: optax.GradientTransformation) -> Entrant:
    """An optax transformation of your own, which no hash can tell from another."""
    extended = optax.with_extra_args_support(tx)
    return Entrant(name, {OWN: name}, lambda rate, steps: extended, learned=True)


def of_optimizer(name: str, optimizer: l2o.LearnedOptimizer, theta: Any) -> Entrant:
    """A learned optimizer with its weights, nothing tuned."""
    identity = {
        "optimizer": optimizer.name,
        "arguments": _plain(optimizer.arguments),
        "theta": digest(theta),
    }

    def make(rate, steps):
        del rate
        return optimizer.bind(theta, num_steps=steps)

    return Entrant(name, identity, make, learned=True)


def digest(tree: Any) -> str:
    """First 16 digits of the SHA-256 of a tree of arrays."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def _baseline(name: str, schedule: str) -> Entrant:
    baseline = baselines()[name]
    if schedule != "constant" and not baseline.scheduled:
        raise ValueError(f"{name} takes no schedule")

    def make(rate, steps):
        tx = baseline.make(scheduled_rate(schedule, rate, steps))
        return optax.with_extra_args_support(tx)

    return Entrant(
        name if schedule == "constant" else f"{name}+{schedule}",
        {"baseline": name, "schedule": schedule},
        make,
        baseline.space,
        baseline.tuned,
        extra=baseline.extra,
        final=baseline.final,
    )


def _learned(name: str, schedule: str) -> Entrant:
    if not Path(name).exists() and os.sep not in name:
        shipped = [x.name for x in l2o.available() if x.kind == "shipped"]
        known = [*baselines(), *shipped]
        if name not in shipped and "/" not in name:
            close = difflib.get_close_matches(name, known, 3, 0.5)
            meant = f"did you mean {' or '.join(close)}? " if close else ""
            raise ValueError(
                f"unknown optimizer {name!r}: {meant}baselines are "
                f"{', '.join(sorted(baselines()))}; shipped weights are "
                f"{', '.join(shipped)}; else a folder or file of weights"
            )
    optimizer, theta = l2o.load_theta(name)
    short = Path(name).absolute().name if Path(name).exists() else name
    if short in ("frozen", "best"):
        short = Path(name).absolute().parent.name
    made = of_optimizer(short, optimizer, theta)
    made = made._replace(source=name, card=_card(name, optimizer))
    if "learning_rate" not in optimizer.needs:
        if schedule != "constant":
            raise ValueError(f"{name} needs no learning rate: it takes no schedule")
        return made

    recorded = dict(optimizer.arguments)
    rated = recorder(recorded, "learning_rate") or {}
    unit = l2o.make(optimizer.name, **changed(recorded, {"learning_rate": 1.0}))

    def make(rate, steps):
        # Its updates are proportional to the rate, weight decay included.
        rate = scheduled_rate(schedule, rate, steps)
        scale = optax.scale_by_schedule if callable(rate) else optax.scale
        return optax.chain(unit.bind(theta, num_steps=steps), scale(rate))

    identity: dict[str, Any] = {**made.identity, "schedule": schedule}
    identity["arguments"] = _plain(changed(recorded, {"learning_rate": "tuned"}))
    return made._replace(
        name=short if schedule == "constant" else f"{short}+{schedule}",
        identity=identity,
        make=make,
        space=half_decades(float(rated["learning_rate"])),
    )


def _card(source: str, optimizer: l2o.LearnedOptimizer) -> dict[str, Any]:
    """Its card, or what can be said of weights that others wrote."""
    try:
        return l2o.read_card(source)
    except (FileNotFoundError, NotADirectoryError):
        theta = jax.eval_shape(optimizer.init_theta, jax.random.key(0))
        return {
            "optimizer": {
                "name": optimizer.name,
                "arguments": dict(optimizer.arguments),
            },
            "meta_parameters": sum(x.size for x in jax.tree.leaves(theta)),
        }


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(v) for v in x]
    if isinstance(x, np.ndarray | np.generic | jax.Array):
        return np.asarray(x).tolist()
    return x


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
