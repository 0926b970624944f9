"""What a meta-training run and an evaluation are made of: two frozen dataclasses."""

import dataclasses
import functools
from typing import Any, Literal, TypeVar, get_type_hints

import typeguard

from l2o import make
from l2o.tasks import FAMILIES, HELDOUT

Option = int | float | bool | str | None
T = TypeVar("T")


def _strict(cls: type[T]) -> type[T]:
    """Unknown field names fail with the known ones listed, ill-typed values by name."""
    original = cls.__init__
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(original)
    def init(self, *args: Any, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            raise ValueError(
                f"unknown option {', '.join(unknown)} of {cls.__name__}; "
                f"known: {', '.join(known)}"
            )
        original(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls


def _check_types(config: Any) -> None:
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        try:
            typeguard.check_type(value, hint)
        except typeguard.TypeCheckError:
            readable = getattr(hint, "__name__", None)
            readable = readable if isinstance(hint, type) else str(hint)
            raise TypeError(
                f"{type(config).__name__}.{name} must be {readable}, not {value!r}"
            ) from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@_strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A meta-training run. The defaults are a sensible start for a laptop."""

    optimizer: str = "small_fc"
    """Architecture; `l2o list` shows them."""
    optimizer_options: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Keyword arguments of its factory, such as `step_mult 0.01`."""
    start_from: str | None = None
    """Weights to go on from, as `l2o.load` takes them; None draws new ones."""
    families: tuple[str, ...] = ("mlp32",)
    """Task families; every outer step draws one, all equally often."""
    reparam_level: Literal["none", "global", "tensor", "parameter"] = "global"
    """Reparametrisation augmentation: one scale per task, tensor or parameter."""
    reparam_range: tuple[float, float] = (1e-3, 1e3)
    """Range of that scale, log-uniform."""
    episode_length: tuple[int, int] = (100, 500)
    """Inner steps of an episode, log-uniform from low to high."""
    particles: int = 8
    """Antithetic pairs of inner runs per family."""
    truncation: int = 50
    """Inner steps per outer step."""
    std: float = 0.01
    """Standard deviation of the perturbations of theta."""
    outer_steps: int = 1000
    """Updates of theta."""
    outer_lr: float = 3e-3
    """Peak learning rate of the outer Adam."""
    outer_warmup: int = 50
    """Outer steps of linear warm-up; a cosine to a tenth of the peak follows."""
    outer_clip: float = 1.0
    """Largest global norm of a meta-gradient."""
    seed: int = 0
    """Of everything random."""
    checkpoint_every: int = 100
    """Outer steps between checkpoints (also one at the end and on SIGTERM)."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints stay."""
    keep_every: int | None = None
    """Checkpoints of every so many outer steps stay for ever; None for none."""
    skip_limit: int = 50
    """Outer steps in a row without a finite meta-gradient after which the run stops."""

    def __post_init__(self) -> None:
        _check_types(self)
        make(self.optimizer, **self.optimizer_options)
        _require(len(self.families) > 0, "Config.families names no task family")
        for name in self.families:
            _require(
                name in FAMILIES,
                f"unknown task family {name!r}; known: {', '.join(FAMILIES)}",
            )
        for name in (
            "particles",
            "truncation",
            "outer_steps",
            "checkpoint_every",
            "keep_checkpoints",
            "keep_every",
            "skip_limit",
            "std",
            "outer_lr",
            "outer_clip",
        ):
            value = getattr(self, name)
            _require(
                value is None or value > 0,
                f"Config.{name} must be positive, not {value}",
            )
        _require(
            0 <= self.outer_warmup < self.outer_steps,
            "Config.outer_warmup must be from 0 to less than outer_steps "
            f"({self.outer_steps}), not {self.outer_warmup}",
        )
        for name in ("episode_length", "reparam_range"):
            low, high = getattr(self, name)
            _require(
                0 < low <= high, f"Config.{name} must be 0 < low <= high: {low}, {high}"
            )


# What may differ when a run is resumed. "free": it changes no number of the run.
# "override": on demand, the state fits as it is. "fixed": the state would be another,
# or mean something else.
RESUMING: dict[str, Literal["free", "override", "fixed"]] = {
    "optimizer": "fixed",
    "optimizer_options": "fixed",
    "start_from": "fixed",
    "families": "fixed",
    "reparam_level": "fixed",
    "reparam_range": "override",
    "episode_length": "override",
    "particles": "fixed",
    "truncation": "fixed",
    "std": "override",
    "outer_steps": "override",
    "outer_lr": "override",
    "outer_warmup": "override",
    "outer_clip": "override",
    "seed": "fixed",
    "checkpoint_every": "free",
    "keep_checkpoints": "free",
    "keep_every": "free",
    "skip_limit": "free",
}


@_strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation beside Adam with a swept learning rate."""

    tasks: tuple[str, ...] = HELDOUT
    """Task families; one task of each, drawn with the seed."""
    steps: int = 1000
    """Inner steps of every run."""
    seeds: int = 5
    """Runs per task and optimizer; all optimizers share initialisations and batches."""
    learning_rates: tuple[float, ...] = (
        1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1,
    )  # fmt: skip
    """Adam's grid; per task the one with the lowest mean final loss is its rival."""
    eval_every: int = 10
    """Inner steps between two points of a learning curve."""
    eval_batches: int = 4
    """Fixed batches per split behind every point."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_curves(self)
        _require(len(self.tasks) > 0, "Evaluation.tasks names no task")
        _require(
            len(self.learning_rates) > 0, "Evaluation.learning_rates is an empty grid"
        )
        _require(
            min(self.learning_rates) > 0, "Evaluation.learning_rates must be positive"
        )


@_strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Following:
    """How the checkpoints of a run in progress are scored."""

    tasks: tuple[str, ...] = ()
    """Task families; by default the run's own, augmented as there. The best checkpoint
    is chosen by these: do not name tasks that it is to be judged on afterwards."""
    steps: int = 500
    """Inner steps of every run."""
    seeds: int = 8
    """Tasks drawn from each family, the same ones for every checkpoint."""
    eval_every: int = 25
    """Inner steps between two points of a learning curve."""
    eval_batches: int = 4
    """Fixed batches of the split `outer_valid` behind every point."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_curves(self)


def _check_curves(config: Evaluation | Following) -> None:
    kind = type(config).__name__
    for name in config.tasks:
        _require(
            name in FAMILIES,
            f"unknown task family {name!r}; known: {', '.join(FAMILIES)}",
        )
    for name in ("steps", "seeds", "eval_every", "eval_batches"):
        value = getattr(config, name)
        _require(value > 0, f"{kind}.{name} must be positive, not {value}")
    _require(
        config.steps % config.eval_every == 0,
        f"{kind}.steps ({config.steps}) must be a multiple of eval_every "
        f"({config.eval_every})",
    )
