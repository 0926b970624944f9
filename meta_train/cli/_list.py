"""What there is: names by kind, a line for each, or everything about one."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

import l2o
from l2o.files import is_shipped
from l2o.names import check_known, expanded, has_separator, is_path, unknown_name
from l2o.tasks import AUGMENTATIONS, DATASETS, KINDS, suites, task_specs

from .. import presets
from .._config import Config
from ..evaluation import baselines
from ..training._recipe import ESTIMATORS
from ._hints import hint, hint_use

Entry = dict[str, Any]


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _available(kind: str) -> list[Entry]:
    return [
        {
            "name": row.name,
            **({} if kind == "architecture" else {"architecture": row.optimizer.name}),
            "meta_parameters": row.meta_parameters,
            "state_bytes_per_parameter": row.state_bytes,
            "needs": list(row.needs),
            "source": row.source,
        }
        for row in l2o.available()
        if row.kind == kind
    ]


def _documented(things: Mapping[str, Any]) -> list[Entry]:
    return [{"name": k, "about": _first_line(x)} for k, x in things.items()]


def _presets() -> list[Entry]:
    names = presets.PRESETS.usable()
    return [{"name": x, "about": presets.summary(x)} for x in names]


def _suites() -> list[Entry]:
    return [
        {"name": x.name, "tasks": len(x.tasks), "steps": x.steps, "about": x.about}
        for x in suites().values()
    ]


# Of each kind what it is, and how its entries are found.
CATALOGUE: dict[str, tuple[str, Callable[[], list[Entry]]]] = {
    "architectures": (
        "what `l2o.make` and meta-train take",
        lambda: _available("architecture"),
    ),
    "weights": ("shipped, for `l2o.load`", lambda: _available("shipped")),
    "published": (
        "others' weights: `l2o.load(NAME, download=True)` fetches them",
        lambda: _available("importable"),
    ),
    "wrappers": (
        "of learned optimizers",
        lambda: _documented(l2o.wrapper_factories()),
    ),
    "estimators": ("of meta-gradients", lambda: _documented(ESTIMATORS)),
    "presets": ("recipes of meta-training", _presets),
    "suites": ("lists of tasks", _suites),
    "baselines": (
        "hand-designed optimizers that evaluate takes",
        lambda: [{"name": k, "tried": list(x.space)} for k, x in baselines().items()],
    ),
}


def print_list(kind: str | None, as_json: bool, console: Console) -> None:
    """Prints all names, or the entries of one kind, as text or as JSON.

    Raises:
      ValueError: unknown kind.
    """
    if kind is not None:
        check_known("kind", kind, CATALOGUE)
    chosen = [kind] if kind else list(CATALOGUE)
    found = {name: CATALOGUE[name][1]() for name in chosen}
    if as_json:
        content = found[kind] if kind else found
        print(json.dumps(content, indent=2))
        return
    if kind:
        console.print(_table(found[kind]))
        console.print(f"`l2o show NAME` says more of one of these {kind}")
        return
    for name, entries in found.items():
        names = ", ".join(x["name"] for x in entries)
        line = f"{name} ({CATALOGUE[name][0]}): {names}"
        console.print(line, highlight=False)
    for problem in _problems():
        console.print(f"cannot be used: {problem}", highlight=False, soft_wrap=True)
    console.print("`l2o list KIND` has a line for each, `l2o show NAME` says more")


def _table(entries: list[Entry]) -> Table:
    """A line for each; sources are left to `l2o show`."""
    keys = [k for k in entries[0] if k != "source"]
    headers = {
        "meta_parameters": "meta-params",
        "state_bytes_per_parameter": "bytes/param",
    }
    table = Table(box=None, pad_edge=False)
    for key in keys:
        is_number = isinstance(entries[0][key], int | float)
        table.add_column(
            headers.get(key, key),
            justify="right" if is_number else "left",
            no_wrap=key == "name",
        )
    for entry in entries:
        table.add_row(*(_cell(entry[key]) for key in keys))
    return table


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,g}" if isinstance(value, float) else f"{value}"


def _problems() -> list[str]:
    """What other distributions announce and cannot be imported."""
    doors = (
        *(l2o.factories(), l2o.wrapper_factories(), presets.PRESETS),
        *(KINDS, AUGMENTATIONS, DATASETS),
    )
    return [x for door in doors for x in map(door.problem, door) if x]


def show(name: str, console: Console) -> None:
    """Prints everything about an architecture, weights, a preset, a suite or a task.

    Raises:
      ValueError: there is nothing of that name.
    """
    for describe, command in _DESCRIBED.items():
        text = describe(name)
        if text is not None:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            if describe is _weights:
                hint_use(console, name)
            if name not in l2o.wrapper_factories():
                about, line = command
                hint(console, about, "l2o", *line.format(name).split())
            return
    known = [
        *(x["name"] for _, entries in CATALOGUE.values() for x in entries()),
        *(task for suite in suites().values() for task in suite.tasks),
    ]
    where = "`l2o list` and `l2o tasks` show the names"
    raise ValueError(unknown_name("name", name, dict.fromkeys(known), listed=where))


def _factory(name: str) -> str | None:
    factories = {**l2o.factories(), **l2o.wrapper_factories()}
    if name not in factories:
        return None
    factory = factories[name]
    lines = [f"{name}: {inspect.getdoc(factory) or ''}", "", "Arguments:"]
    for argument, default in l2o.defaults_of(factory).items():
        needed = default is inspect.Parameter.empty
        lines.append(f"  {argument}" + ("" if needed else f" = {default!r}"))
    return "\n".join(lines)


def _estimator(name: str) -> str | None:
    return inspect.getdoc(ESTIMATORS[name]) if name in ESTIMATORS else None


def _weights(name: str) -> str | None:
    is_file = is_path(name) or has_separator(name)
    if not is_shipped(name) and not (is_file and expanded(name).exists()):
        return None
    content = l2o.read_card(name)
    card = {k: v for k, v in content["card"].items() if k != "task_specs"}
    return json.dumps({**content, "card": card}, indent=2)


def _baseline(name: str) -> str | None:
    if name not in baselines():
        return None
    baseline = baselines()[name]
    rates = ", ".join(map(str, baseline.space)) or "nothing"
    schedule = "takes a schedule" if baseline.scheduled else "takes no schedule"
    return f"{name}: a baseline of `l2o evaluate`\n\ntried: {rates}\n{schedule}"


def _published(name: str) -> str | None:
    found = next((x for x in _available("importable") if x["name"] == name), None)
    if found is None:
        return None
    lines = [f"{name}: others' weights, on the model hub under this name", ""]
    lines += [
        f"  {key}: {_cell(value)}" for key, value in found.items() if key != "name"
    ]
    how = f"`l2o.load({name!r}, download=True)`, or `--download` on the command line"
    return "\n".join([*lines, "", f"fetch them: {how}"])


def _preset(name: str) -> str | None:
    if name not in presets.PRESETS:
        return None
    made, plain = presets.load(name), Config()
    lines = [inspect.getdoc(presets.PRESETS[name]) or "", "", "Options:"]
    lines += [
        f"  {field.name} = {getattr(made.meta_train, field.name)!r}"
        for field in dataclasses.fields(Config)
        if getattr(made.meta_train, field.name) != getattr(plain, field.name)
    ]
    return "\n".join([*lines, "", f"All others are those of Config. {made.evaluation}"])


def _tasks(name: str) -> str | None:
    if name in suites():
        suite = suites()[name]
        head = f"{name}, version {suite.version}: {suite.about}; {suite.steps} steps"
        return "\n".join([head, *(f"  {task}" for task in suite.tasks)])
    try:
        (spec,) = task_specs([name]).values()
    except (ValueError, OSError):
        return None
    return json.dumps(spec.to_dict(), indent=2)


# How a name is described, and what to do with it: in words, and the command.
_DESCRIBED = {
    _factory: ("meta-train it", "meta-train --optimizer {0} --out runs/{0}"),
    _estimator: ("meta-train by it", "meta-train --estimator {0} --out runs/{0}"),
    _weights: ("it beside tuned Adam", "evaluate --optimizers {0}"),
    _published: ("it beside tuned Adam", "evaluate --optimizers {0} --download"),
    _preset: ("run it", "meta-train --preset {0} --out runs/{0}"),
    _baseline: ("it beside tuned Adam", "evaluate --optimizers {0}"),
    _tasks: (
        "optimizers on it",
        "evaluate --suite {0} --optimizers adaptive_muon:0.03",
    ),
}
