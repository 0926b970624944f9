"""What a meta-training run and an evaluation are made of: two frozen dataclasses."""

import dataclasses
import functools
import math
from typing import Any, Literal, TypeVar, get_type_hints

import typeguard

from l2o import make
from l2o.files import is_shipped
from l2o.tasks import Split, TaskSpec, held_out, suites, task_specs

from .estimators._objective import Over

Option = int | float | bool | str | None
T = TypeVar("T")


def strict(cls: type[T]) -> type[T]:
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


def check_types(config: Any) -> None:
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
        numbers = value if isinstance(value, tuple) else (value,)
        require(
            all(math.isfinite(x) for x in numbers if isinstance(x, float)),
            f"{type(config).__name__}.{name} must be finite, not {value}",
        )


def resolved(field: str, names: tuple[str, ...]) -> dict[str, TaskSpec]:
    try:
        return task_specs(names)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _may_be_seen(field: str, specs: dict[str, TaskSpec], remedy: str) -> None:
    for name, spec in specs.items():
        why = held_out(spec)
        require(
            why is None,
            f"{field}: {name} is held out ({why}): optimizers are judged by it. "
            f"{remedy[0].upper()}{remedy[1:]}",
        )


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A meta-training run. The defaults are a sensible start for a laptop.

    Attributes:
      optimizer: Architecture to meta-train; `l2o list` shows them.
      optimizer_options: Arguments of the optimizer's factory, such as `step_mult 0.01`.
        The command line takes the preset's unless another optimizer is named.
      start_from: Weights to start from, as `l2o.load` takes them; None draws new ones.
      families: Task families: tasks, suites (`l2o tasks` shows them) or JSON files of
        specs.
      allow_heldout: Accept families that optimizers are judged by, too; the card then
        says so.
      families_per_step: one: an outer step draws one family, all equally often. all: it
        averages all.
      reparam_level: Reparametrisation augmentation: one scale per task, tensor or
        parameter.
      reparam_range: Range of that scale, log-uniform.
      rate_range: Range of a factor of all updates, log-uniform, drawn for every
        episode. For optimizers whose learning rate users set.
      episode_length: Inner steps of an episode, log-uniform from low to high.
      episode_length_start: Inner steps at the first outer step, where the bounds grow;
        None: they do not.
      episode_growth: Outer steps over which the bounds of the episode length grow,
        linearly.
      estimator: Estimator of the meta-gradient; `l2o list` shows them.
      estimator_options: Arguments of the estimator, such as `sign 1.0` of full_es.
      particles: Inner runs per family; antithetic pairs of runs for evolution
        strategies.
      truncation: Inner steps per estimate, for estimators that truncate.
      windows_per_step: Estimates averaged in an outer step.
      std: Standard deviation of the perturbations of theta.
      objective_split: Split whose fresh batches judge new parameters; None takes the
        training loss before each update.
      objective_metric: One of the task's metrics; None takes its loss.
      objective_over: What counts of all steps: mean, late (later steps count more),
        last, telescoping (last, in windows) or min.
      objective_samples: Fresh batches per measurement.
      objective_maximum: Measurements are clipped to [0, this], and NaN counts as this;
        None leaves the bound to the task.
      objective_log: Take logarithms of measurements between 1e-6 and objective-maximum
        (or 1000), so that ratios of losses count.
      outer_steps: Updates of theta.
      outer_optimizer: Any optimizer of optax that needs a gradient and a learning rate.
      outer_options: Arguments of the outer optimizer, such as `weight_decay 1e-4` of
        adamw.
      outer_lr: Peak learning rate of the outer optimizer.
      outer_warmup: Outer steps of linear warm-up; a cosine to a tenth of the peak
        follows.
      outer_clip: Largest global norm of a meta-gradient.
      theta_average: Decay per outer step of an average of theta, such as 0.999; None
        keeps none. The average is exported and scored.
      frozen: Parts of theta that stay fixed, besides those that the optimizer freezes.
      population: Outer loops side by side (population-based training); the best is
        exported. Each adapts a factor of outer-lr.
      population_range: Range of the first factors, spread evenly in the logarithm.
      exchange_every: Outer steps after which copies of the best replace the worst
        quarter.
      seed: Seed of everything random.
      checkpoint_every: Outer steps between checkpoints (also one at the end and on
        SIGTERM).
      keep_checkpoints: How many of the newest checkpoints stay.
      keep_every: Checkpoints at multiples of this outer step always stay; None names
        none.
      skip_limit: Outer steps in a row without a finite meta-gradient after which the
        run stops.
    """

    optimizer: str = "small_fc"
    optimizer_options: dict[str, Option] = dataclasses.field(default_factory=dict)
    start_from: str | None = None
    families: tuple[str, ...] = ("mlp32",)
    allow_heldout: bool = False
    families_per_step: Literal["one", "all"] = "one"
    reparam_level: Literal["none", "global", "tensor", "parameter"] = "global"
    reparam_range: tuple[float, float] = (1e-3, 1e3)
    rate_range: tuple[float, float] = (1.0, 1.0)
    episode_length: tuple[int, int] = (100, 500)
    episode_length_start: tuple[int, int] | None = None
    episode_growth: int = 0
    estimator: str = "pes"
    estimator_options: dict[str, Option] = dataclasses.field(default_factory=dict)
    particles: int = 8
    truncation: int = 50
    windows_per_step: int = 1
    std: float = 0.01
    objective_split: Split | None = None
    objective_metric: str | None = None
    objective_over: Over = "mean"
    objective_samples: int = 1
    objective_maximum: float | None = None
    objective_log: bool = False
    outer_steps: int = 1000
    outer_optimizer: str = "adam"
    outer_options: dict[str, Option] = dataclasses.field(default_factory=dict)
    outer_lr: float = 3e-3
    outer_warmup: int = 50
    outer_clip: float = 1.0
    theta_average: float | None = None
    frozen: tuple[str, ...] = ()
    population: int = 1
    population_range: tuple[float, float] = (0.1, 10.0)
    exchange_every: int = 100
    seed: int = 0
    checkpoint_every: int = 100
    keep_checkpoints: int = 3
    keep_every: int | None = None
    skip_limit: int = 50

    def __post_init__(self) -> None:
        check_types(self)
        require(
            not is_shipped(self.optimizer),
            f"{self.optimizer} is the name of weights, not of an architecture: start "
            f"from them, start_from={self.optimizer!r} (--start-from), with their "
            "architecture as optimizer",
        )
        make(self.optimizer, **self.optimizer_options)
        require(len(self.families) > 0, "Config.families names no task family")
        specs = resolved("Config.families", self.families)
        if not self.allow_heldout:
            _may_be_seen("Config.families", specs, "take others, or allow_heldout")
        for name in self.families:
            require(
                self.reparam_level == "none"
                or name not in suites()
                or not suites()[name].augmented,
                f"Config.families: {name} brings its own augmentations: set "
                "reparam_level to 'none'",
            )
        for name in (
            "particles",
            "truncation",
            "std",
            "objective_samples",
            "outer_steps",
            "windows_per_step",
            "objective_maximum",
            "population",
            "exchange_every",
            "checkpoint_every",
            "keep_checkpoints",
            "keep_every",
            "skip_limit",
            "outer_lr",
            "outer_clip",
        ):
            value = getattr(self, name)
            require(
                value is None or value > 0,
                f"Config.{name} must be positive, not {value}",
            )
        require(self.seed >= 0, f"Config.seed must not be negative, got {self.seed}")
        require(
            0 <= self.outer_warmup < self.outer_steps,
            "Config.outer_warmup must be from 0 to less than outer_steps "
            f"({self.outer_steps}), not {self.outer_warmup}",
        )
        require(
            self.theta_average is None or 0 < self.theta_average < 1,
            f"Config.theta_average must be between 0 and 1, not {self.theta_average}",
        )
        for name in (
            "episode_length",
            "episode_length_start",
            "reparam_range",
            "rate_range",
            "population_range",
        ):
            bounds = getattr(self, name)
            require(
                bounds is None or 0 < bounds[0] <= bounds[1],
                f"Config.{name} must be 0 < low <= high, not {bounds}",
            )


# What may differ when a run is resumed. "free": it changes no number of the run.
# "override": on demand, the state fits as it is. "fixed": the state would be another,
# or mean something else.
RESUMING: dict[str, Literal["free", "override", "fixed"]] = {
    "optimizer": "fixed",
    "optimizer_options": "fixed",
    "start_from": "fixed",
    "families": "fixed",
    "allow_heldout": "free",
    "families_per_step": "fixed",
    "reparam_level": "fixed",
    "reparam_range": "override",
    "rate_range": "fixed",
    "episode_length": "override",
    "episode_length_start": "override",
    "episode_growth": "override",
    "estimator": "fixed",
    "estimator_options": "fixed",
    "particles": "fixed",
    "truncation": "fixed",
    "windows_per_step": "override",
    "std": "override",
    "objective_split": "override",
    "objective_metric": "override",
    "objective_over": "fixed",
    "objective_samples": "override",
    "objective_maximum": "override",
    "objective_log": "override",
    "outer_steps": "override",
    "outer_optimizer": "fixed",
    "outer_options": "fixed",
    "outer_lr": "override",
    "outer_warmup": "override",
    "outer_clip": "override",
    "theta_average": "fixed",
    "frozen": "fixed",
    "population": "fixed",
    "population_range": "fixed",
    "exchange_every": "override",
    "seed": "fixed",
    "checkpoint_every": "free",
    "keep_checkpoints": "free",
    "keep_every": "free",
    "skip_limit": "free",
}


Tuning = Literal["task", "set", "none"]


@strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Optimizers beside tuned Adam on the tasks of a suite.

    Attributes:
      optimizers: Baselines (`all` takes all), such as adamw, adamw+cosine (with a
        schedule) or adamw:0.001 (at that rate, not tuned). Or weights, as `l2o.load`
        takes them, a folder by its path. Adam always takes part.
      suite: A suite, a task, or a JSON file of tasks.
      tasks: Only these tasks of the suite; by default all.
      tuning: How learning rates are chosen. task: per task, by the loss on
        `outer_valid`. set: one for all tasks, on the tuning set. none: the default.
      trials: Learning rates to try: the first of every optimizer's declared space.
      tuning_set: Suite on which --tuning set chooses.
      steps: Inner steps of every run; by default the suite's budget.
      seeds: Runs per task and trial; all optimizers share tasks, initialisations,
        batches.
      eval_every: Inner steps between two points of a learning curve.
      eval_batches: Fixed batches per split behind every point.
      adam_horizon: Adam also runs for this many times the steps: the largest speed-up
        over Adam that can be measured.
    """

    optimizers: tuple[str, ...] = ()
    suite: str = "demo/heldout"
    tasks: tuple[str, ...] = ()
    tuning: Tuning = "task"
    trials: int = 7
    tuning_set: str = "train/fast"
    steps: int | None = None
    seeds: int = 3
    eval_every: int = 25
    eval_batches: int = 4
    adam_horizon: int = 5

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("seeds", "eval_every", "eval_batches", "trials", "adam_horizon"):
            _require_positive(self, name)
        specs = resolved("Evaluation.suite", (self.suite,))
        for task in self.tasks:
            require(
                task in specs,
                f"Evaluation.tasks: {task!r} is not in {self.suite}, which has "
                f"{', '.join(specs)}",
            )
        if self.tuning == "set":
            others = resolved("Evaluation.tuning_set", (self.tuning_set,))
            _may_be_seen("Evaluation.tuning_set", others, "choose on others")
        if self.steps is not None:
            _require_positive(self, "steps")
            _check_points(self, self.steps)


@strict
@dataclasses.dataclass(frozen=True, kw_only=True)
class Following:
    """How the checkpoints of a run in progress are scored.

    Attributes:
      families: Task families; by default the run's own, augmented as there. They choose
        the best checkpoint: do not judge it on them afterwards.
      steps: Inner steps of every run.
      seeds: Tasks drawn from each family, the same ones for every checkpoint.
      eval_every: Inner steps between two points of a learning curve.
      eval_batches: Fixed batches of the split `outer_valid` behind every point.
    """

    families: tuple[str, ...] = ()
    steps: int = 500
    seeds: int = 8
    eval_every: int = 25
    eval_batches: int = 4

    def __post_init__(self) -> None:
        check_types(self)
        _check_curves(self)


def _check_curves(config: Following) -> None:
    specs = resolved("Following.families", config.families)
    _may_be_seen("Following.families", specs, "choose checkpoints on others")
    for name in ("steps", "seeds", "eval_every", "eval_batches"):
        _require_positive(config, name)
    _check_points(config, config.steps)


def _require_positive(config: Any, name: str) -> None:
    value = getattr(config, name)
    kind = type(config).__name__
    require(value > 0, f"{kind}.{name} must be positive, not {value}")


def _check_points(config: Evaluation | Following, steps: int) -> None:
    require(
        steps % config.eval_every == 0,
        f"{type(config).__name__}.steps ({steps}) must be a multiple of eval_every "
        f"({config.eval_every})",
    )
