"""The options of a configuration on the command line: a dozen first, then groups."""

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

import tyro

from ._arguments import parse

T = TypeVar("T")


class Group(NamedTuple):
    """Options that are shown together: what they are about, and their names."""

    about: str
    names: Sequence[str]


# Of `Config`. What no group has is among the first.
GROUPS = {
    "tasks": Group(
        "How tasks are drawn and augmented.",
        (
            "families_per_step",
            "allow_heldout",
            "reparam_level",
            "reparam_range",
            "rate_range",
        ),
    ),
    "episodes": Group(
        "Episodes whose length grows (a curriculum).",
        ("episode_length_start", "episode_growth"),
    ),
    "meta_gradient": Group(
        "How the meta-gradient is estimated.",
        ("estimator_options", "std", "windows_per_step"),
    ),
    "objective": Group(
        "What the meta-loss is made of.",
        (
            "objective_split",
            "objective_metric",
            "objective_over",
            "objective_samples",
            "objective_maximum",
            "objective_log",
        ),
    ),
    "outer_loop": Group(
        "Which theta is trained, and how the outer optimizer does it.",
        (
            "optimizer_options",
            "frozen",
            "outer_optimizer",
            "outer_options",
            "outer_warmup",
            "outer_clip",
            "theta_average",
        ),
    ),
    "populations": Group(
        "Several outer loops side by side.",
        ("population", "population_range", "exchange_every"),
    ),
    "checkpoints": Group(
        "What is kept, and when a run gives up.",
        ("checkpoint_every", "keep_checkpoints", "keep_every", "skip_limit"),
    ),
}


def fields_of(
    configuration: type, names: Sequence[str] | None = None
) -> list[tuple[str, Any, Any]]:
    """Fields of a dataclass as `dataclasses.make_dataclass` takes them.

    Each is annotated with its description, which stands in the docstring.
    """
    hints = get_type_hints(configuration, include_extras=True)
    told = dict(descriptions(configuration))
    return [
        (
            field.name,
            Annotated[hints[field.name], tyro.conf.arg(help=told[field.name])],
            dataclasses.field(
                default=field.default, default_factory=field.default_factory
            ),
        )
        for field in dataclasses.fields(configuration)
        if names is None or field.name in names
    ]


def descriptions(configuration: type) -> Iterator[tuple[str, str]]:
    """Name and text of every entry under "Attributes:" of a docstring."""
    text = (inspect.getdoc(configuration) or "").partition("Attributes:\n")[2]
    for name, about in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", text, re.M):
        yield name, " ".join(about.split())


class Grouped(NamedTuple):
    """Two dataclasses for tyro: with the first options alone, and with all."""

    first: type
    every: type
    more: int  # how many options only the second has


def grouped(
    command: type, configuration: type, groups: Mapping[str, Group], **more: type
) -> Grouped:
    """The options of a command: its own, the first of a configuration, and groups.

    Args:
      command: a dataclass of the command's own options, with its text.
      configuration: a dataclass whose docstring describes every field.
      groups: what to put together, by title.
      **more: further dataclasses, each a group, by title.
    """
    later = {name for group in groups.values() for name in group.names}
    every = [field.name for field in dataclasses.fields(configuration)]
    fields: list[Any] = fields_of(configuration, [x for x in every if x not in later])
    first = _dataclass(command, fields)
    kinds = dict(more)
    for title, group in groups.items():
        base = dataclasses.make_dataclass(
            title, (), frozen=True, namespace={"__doc__": group.about}
        )
        kinds[title] = _dataclass(base, fields_of(configuration, group.names))
    return Grouped(
        first,
        _dataclass(first, [_flat(title, kinds[title]) for title in (*groups, *more)]),
        len(later) + sum(len(dataclasses.fields(kind)) for kind in more.values()),
    )


def _dataclass(base: type, fields: Sequence[Any]) -> type:
    return dataclasses.make_dataclass(
        base.__name__,
        fields,
        bases=(base,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": base.__doc__},
    )


def _flat(title: str, kind: type) -> tuple[str, Any, Any]:
    """A field that adds the options of `kind` without a prefix."""
    omitted = tyro.conf.OmitArgPrefixes[kind]  # type: ignore[valid-type]
    return title, omitted, dataclasses.field(default_factory=kind)


def parse_groups(
    command: str,
    options: Grouped,
    arguments: Sequence[str],
    configuration: Any,
    **own: Any,
) -> Any:
    """The options of a command line, with a configuration's values as defaults.

    `--help` shows the first options, `--help-all` shows every option.

    Args:
      command: the command's name.
      options: what `grouped` made.
      arguments: the command line after the command.
      configuration: its fields are the defaults.
      **own: defaults of the command's own options.

    Raises:
      SystemExit: help was asked for (0), or the line is wrong (2).
    """
    if {"-h", "--help"} & set(arguments):
        few: Any = _filled(options.first, configuration, own)
        with contextlib.suppress(SystemExit):
            parse(command, options.first, ["--help"], default=few)
        print(f"`l2o {command} --help-all` shows {options.more} more options")
        raise SystemExit(0)
    every: Any = _filled(options.every, configuration, own)
    return parse(command, options.every, arguments, default=every)


def _filled(options: Any, configuration: Any, own: Mapping[str, Any]) -> Any:
    values = dict(own)
    for field in dataclasses.fields(options):
        kind: Any = field.default_factory
        if hasattr(configuration, field.name):
            values.setdefault(field.name, getattr(configuration, field.name))
        elif dataclasses.is_dataclass(kind):
            values[field.name] = _filled(kind, configuration, {})
    return options(**values)


def collect(options: Any, configuration: type[T]) -> T:
    """The configuration that was told, from the groups of a command line."""
    known = {field.name for field in dataclasses.fields(configuration)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in vars(options).items():
        if name in known:
            values[name] = value
        elif dataclasses.is_dataclass(value):
            values |= {k: v for k, v in vars(value).items() if k in known}
    return configuration(**values)
