"""What competes: baselines by name, and learned optimizers."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import l2o
from l2o.files import holder_of, is_shipped, plain, told_arguments, with_changes
from l2o.names import expanded, has_separator, is_hub_id, is_path, unknown_name

from ..estimators._unroll import value_only
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
        `baselines` or weights as `l2o.load` takes them (a shipped name, the path of a
        folder or of a file of published weights); SCHEDULE is "cosine" or "linear", a
        warm-up and then a cosine or a line to zero; with a RATE nothing is tuned. A
        path that exists is taken whole, whatever is in it.

    Raises:
      ValueError: none of that; the message suggests something.

    Example:
      >>> from l2o.meta_train.evaluation import entrant
      >>> entrant("adamw+cosine:0.003").space
      (0.003,)
    """
    name, schedule, rate = _parsed(text)
    if schedule not in SCHEDULES:
        raise ValueError(f"{text}: {unknown_name('schedule', schedule, SCHEDULES)}")
    kind = _baseline if name in baselines() else _learned
    made = kind(name, schedule)
    if rate is not None:
        if not made.space:
            raise ValueError(f"{text}: {name} has no rate to give")
        made = made._replace(name=text, space=(rate,))
    return made


def weights_in(text: str) -> str:
    """NAME of what `entrant` takes."""
    return _parsed(text)[0]


def _parsed(text: str) -> tuple[str, str, float | None]:
    """Name, schedule and rate. What is no path is split wherever a mark is."""
    if _is_there(text):
        return text, "constant", None
    name, colon, last = text.rpartition(":")
    if not colon or has_separator(last):  # the colon is part of a path
        name, last = text, ""
    rate = _rate(text, last) if name != text else None
    if _is_there(name):
        return name, "constant", rate
    body, plus, schedule = name.rpartition("+")
    if not plus or has_separator(schedule):
        return name, "constant", rate
    return body, schedule, rate


def _is_there(name: str) -> bool:
    """Whether it is spelled as a path, and there."""
    return (is_path(name) or has_separator(name)) and expanded(name).exists()


def _rate(text: str, number: str) -> float:
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(
            f"{text}: {number!r} is no rate, expected a positive number after the "
            "colon, such as adamw:0.001"
        )
    return rate


def of_transformation(name: str, tx: optax.GradientTransformation) -> Entrant:
    """An optax transformation of your own, which no hash can tell from another."""
    extended = optax.with_extra_args_support(tx)
    return Entrant(name, {OWN: name}, lambda rate, steps: extended, learned=True)


def of_optimizer(name: str, optimizer: l2o.LearnedOptimizer, theta: Any) -> Entrant:
    """A learned optimizer with its weights, nothing tuned."""
    identity = {
        "optimizer": optimizer.name,
        "arguments": plain(told_arguments(optimizer.name, optimizer.arguments)),
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
    if not (is_path(name) or is_hub_id(name) or is_shipped(name)):
        known = [*sorted(baselines()), *l2o.shipped()]
        paths = "a file or folder of weights"
        listed = "`l2o list baselines` and `l2o list weights` show the names"
        raise ValueError(
            unknown_name("optimizer", name, known, listed=listed, paths=paths)
        )
    optimizer, theta = l2o.load_unbound(name)
    short = name
    if _is_there(name):
        path = expanded(name).absolute()
        short = path.parent.name if path.name in ("frozen", "best") else path.name
    made = of_optimizer(short, optimizer, theta)
    made = made._replace(source=name, card=_card(name, optimizer))
    if "learning_rate" not in optimizer.needs:
        if schedule != "constant":
            raise ValueError(f"{name} needs no learning rate: it takes no schedule")
        return made

    recorded = dict(optimizer.arguments)
    if schedule != "constant" and _has_schedule(optimizer):
        raise ValueError(f"{name} has a schedule of its own: it takes no other")
    rated = holder_of(recorded, "learning_rate") or {}
    unit = l2o.make(optimizer.name, **with_changes(recorded, {"learning_rate": 1.0}))

    def make(rate, steps):
        # Its updates are proportional to the rate, weight decay included.
        rate = scheduled_rate(schedule, rate, steps)
        scale = optax.scale_by_schedule if callable(rate) else optax.scale
        return optax.chain(unit.bind(theta, num_steps=steps), scale(rate))

    identity: dict[str, Any] = {**made.identity, "schedule": schedule}
    told = told_arguments(optimizer.name, recorded)
    identity["arguments"] = plain(with_changes(told, {"learning_rate": "tuned"}))
    return made._replace(
        name=short if schedule == "constant" else f"{short}+{schedule}",
        identity=identity,
        make=make,
        space=half_decades(float(rated["learning_rate"])),
    )


def _has_schedule(optimizer: l2o.LearnedOptimizer) -> bool:
    if "num_steps" in optimizer.needs:
        return True
    rate = {"learning_rate": optax.constant_schedule(1.0)}
    try:
        l2o.make(optimizer.name, **with_changes(dict(optimizer.arguments), rate))
    except ValueError:
        return True
    return False


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
