"""A task family as data: which factory, with what, under which augmentations."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from l2o.doors import Door
from l2o.files import plain
from l2o.names import unknown_name

from ._base import TaskFamily

# Where each is found; imported on use, because most need flax or haiku.
_KINDS: dict[str, str] = {
    "image_mlp": "families._image_mlp",
    "supervised": "families._supervised",
    "autoencoder": "families._autoencoder",
    "vae": "families._autoencoder",
    "diffusion": "families._diffusion",
    "language_model": "families._language",
    "skip_gram": "families._skip_gram",
    "copy_task": "families._copy",
    "coordinate_network": "families._coordinate_network",
    "pinn_heat": "families._pinn",
    "cartpole": "families._cartpole",
    "train_learned_optimizer": "families._learned_optimizer",
    "quadratic": "families._quadratic",
    "least_squares": "families._least_squares",
    "noisy_quadratic": "families._noisy_quadratic",
    "noisy_mean": "families._noisy_quadratic",
    "log_quadratic": "families._noisy_quadratic",
    "lasso": "families._lasso",
    "logistic_regression": "families._logistic",
    "landscape": "families._landscapes",
    "l2o_scale": "families._l2o_scale",
    "open_l2o": "families._open_l2o",
    "matmul_algorithm": "families._matmul",
    "sparse_coding": "families._sparse_coding",
    "zipf_table": "families._zipf_table",
}
_AUGMENTATIONS: dict[str, str] = {
    "delayed_gradient": "augment._delay",
    "es_gradient": "augment._es",
    "gradient_noise": "augment._noise",
    "label_noise": "augment._data",
    "nan_gradient": "augment._hazards",
    "normalized_gradient": "augment._normalize",
    "random_directions": "augment._directions",
    "reduced_batch": "augment._batch",
    "reduced_precision": "augment._precision",
    "reparametrize": "augment._reparam",
    "scaled_loss": "augment._hazards",
    "truncated_data": "augment._data",
}


@functools.cache
def _imported(name: str, module: str) -> Callable[..., TaskFamily]:
    try:
        return getattr(importlib.import_module(f"l2o.tasks.{module}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("l2o"):
            raise
        raise ModuleNotFoundError(
            f"{name} needs {error.name}: pip install 'l2o[train]'"
        ) from error


def _check_factory(factory: Any) -> None:
    if not callable(factory):
        raise TypeError(f"expected a function that returns a family, got {factory!r}")


KINDS: Door[Callable[..., TaskFamily]] = Door(
    "kind of task", "l2o.tasks", _KINDS, load=_imported, check=_check_factory
)
AUGMENTATIONS: Door[Callable[..., TaskFamily]] = Door(
    "augmentation",
    "l2o.augmentations",
    _AUGMENTATIONS,
    load=_imported,
    check=_check_factory,
)


def register_kind(name: str, factory: Callable[..., TaskFamily]) -> None:
    """Gives a factory of task families of one's own a name, for this process.

    From then on a `TaskSpec`, `make_family` and JSON files of tasks know it as a kind;
    without options it is a task of that name. A distribution that announces it as an
    entry point of the group `l2o.tasks` is known to every process, and to the `l2o`
    command.

    Args:
      name: that no other has.
      factory: from keyword arguments, which JSON can hold, to a `TaskFamily`.

    Raises:
      ValueError: the name is taken.
      TypeError: it is no function.

    Example:
      >>> from l2o.tasks import make_family, quadratic, register_kind
      >>> register_kind("bowl", lambda dim=2: quadratic(dim))
      >>> make_family("bowl", dim=5).name
      'quadratic5'
    """
    KINDS.register(name, factory)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A wrapper of `l2o.tasks.augment` by name, with its arguments but the family.

    Raises:
      ValueError: unknown name or argument; the message lists the known ones.

    Example:
      >>> from l2o.tasks import Augmentation, quadratic
      >>> rescaled = Augmentation("reparametrize", {"level": "tensor"})
      >>> rescaled(quadratic(3)).name
      'quadratic3/reparam-tensor'
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        wrapper = AUGMENTATIONS.find(self.name)
        _check_options(wrapper, self.name, self.options, "family")
        options = {name: _tuples(value) for name, value in self.options.items()}
        object.__setattr__(self, "options", options)

    def __call__(self, family: TaskFamily) -> TaskFamily:
        """The augmented family."""
        return AUGMENTATIONS.find(self.name)(family, **self.options)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """A task family as data, which JSON can hold.

    A spec has static shapes: `family()` of it is one compiled program. What may vary
    from task to task without a new program (weights' scale, activation, dataset, a
    problem's matrices) the family itself samples.

    Attributes:
      kind: the factory, a key of `KINDS`.
      options: its keyword arguments; what is missing has its default.
      augmentations: applied in this order.
      label: name of the family; by default the one that its factory gives it.

    Raises:
      ValueError: unknown kind; by `check` and `family`, unknown options, too. The
        message lists the known ones.

    Example:
      >>> from l2o.tasks import TaskSpec
      >>> spec = TaskSpec("image_mlp", {"datasets": ("digits",), "hidden": (16,)})
      >>> TaskSpec.from_json(spec.to_json()) == spec
      True
      >>> spec.family().name
      'mlp16'
    """

    kind: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    augmentations: tuple[Augmentation, ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(unknown_name(KINDS.what, self.kind, KINDS))
        options = {name: _tuples(value) for name, value in self.options.items()}
        object.__setattr__(self, "options", options)

    def check(self) -> "TaskSpec":
        """Itself, if its factory takes its options; that is imported now."""
        _check_options(KINDS.find(self.kind), self.kind, self.options)
        return self

    def family(self) -> TaskFamily:
        """The task family; its data are loaded now."""
        self.check()
        family = KINDS.find(self.kind)(**self.options)
        for augmentation in self.augmentations:
            family = augmentation(family)
        return family._replace(name=self.label) if self.label else family

    def augmented(self, *augmentations: Augmentation) -> "TaskSpec":
        """The same with more augmentations, applied last."""
        return dataclasses.replace(
            self, augmentations=(*self.augmentations, *augmentations)
        )

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets it needs; of its inner task, too, if it has one."""
        found: list[str] = []
        given = {**_defaults(self.kind), **self.options}
        for key, value in given.items():
            if key in ("dataset", "image") and isinstance(value, str):
                found.append(value)
            elif key == "datasets":
                found += value
            elif isinstance(value, Mapping) and "kind" in value:
                found += TaskSpec.from_dict(value).datasets
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, lists, strings and numbers."""
        return plain(
            {
                "kind": self.kind,
                "options": self.options,
                "augmentations": [
                    {"name": a.name, "options": a.options} for a in self.augmentations
                ],
                "label": self.label,
            }
        )

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, check: bool = True) -> "TaskSpec":
        """The spec that `to_dict` gave.

        Args:
          content: a mapping.
          check: as the method of that name does, now.

        Raises:
          ValueError: unknown keys or options.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(content.keys() - known)
        if unknown or "kind" not in content:
            raise ValueError(
                f"a task spec has the keys {', '.join(sorted(known))}, of which 'kind' "
                f"is needed; not {', '.join(sorted(content))}"
            )
        content = _tuples(content)
        steps = content.get("augmentations", ())
        for part in (content, *steps):
            if not _is_part(part):
                raise ValueError(
                    "a task spec and each of its augmentations need a mapping of "
                    "options, and augmentations have the keys name and options; not "
                    f"{part}"
                )
        augmentations = tuple(Augmentation(**step) for step in steps)
        spec = cls(**{**content, "augmentations": augmentations})
        return spec.check() if check else spec

    def to_json(self) -> str:
        """As `to_dict`; equal specs give equal texts."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "TaskSpec":
        """The spec that `to_json` gave."""
        return cls.from_dict(json.loads(text))

    def digest(self) -> str:
        """First 16 digits of the SHA-256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def make_kind(kind: str, options: Mapping[str, Any]) -> TaskFamily:
    """The task family of that kind; its options may hold datasets of one's own."""
    made = KINDS.find(kind)
    _check_options(made, kind, options)
    return made(**options)


def _defaults(kind: str) -> dict[str, Any]:
    parameters = inspect.signature(KINDS.find(kind)).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }


def _check_options(
    factory: Callable, name: str, options: Mapping[str, Any], *implied: str
) -> None:
    parameters = inspect.signature(factory).parameters
    known = [option for option in parameters if option not in implied]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(unknown)}; known: {', '.join(known)}"
        )
    missing = [
        option
        for option in known
        if parameters[option].default is inspect.Parameter.empty
        and option not in options
    ]
    if missing:
        raise ValueError(f"{name} needs the option {', '.join(missing)}")


def _is_part(x: Any) -> bool:
    """Whether it can be a spec, known by its kind, or else an augmentation."""
    if not isinstance(x, Mapping) or not isinstance(x.get("options", {}), Mapping):
        return False
    return "kind" in x or {"name"} <= x.keys() <= {"name", "options"}


def _tuples(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {key: _tuples(value) for key, value in x.items()}
    if isinstance(x, np.ndarray | np.generic):
        x = x.tolist()  # numbers that JSON can hold
    if isinstance(x, Sequence) and not isinstance(x, str):
        return tuple(_tuples(value) for value in x)
    return x
