"""Tasks by name: those of the suites, whole suites, and one's own in a JSON file."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from l2o.files import read_json, reading
from l2o.names import expanded, has_separator, is_path, unknown_name

from ._base import TaskFamily
from ._spec import KINDS, TaskSpec, make_kind
from .suites import Suite, suites

_registered: dict[str, TaskSpec] = {}


@functools.cache
def _tasks_of_suites() -> dict[str, TaskSpec]:
    return {name: s for suite in suites().values() for name, s in suite.tasks.items()}


def named_tasks() -> dict[str, TaskSpec]:
    """The specs of all suites, and registered ones, by their names.

    Example:
      >>> from l2o.tasks import named_tasks
      >>> named_tasks()["mlp32"].kind
      'image_mlp'
    """
    return {**_tasks_of_suites(), **_registered}


def register_task(name: str, spec: TaskSpec) -> None:
    """Gives a spec a name, for this process.

    Raises:
      ValueError: the name is taken.

    Example:
      >>> from l2o.tasks import TaskSpec, make_family, register_task
      >>> register_task("bowl3", TaskSpec("quadratic", {"dim": 3}))
      >>> make_family("bowl3").name
      'bowl3'
    """
    spec = dataclasses.replace(spec, label=name)
    if _registered.get(name) == spec:
        return
    if name in named_tasks() or name in suites() or name in KINDS:
        raise ValueError(f"the task {name!r} is there already: take another name")
    _registered[name] = spec


def load_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
      ValueError: unknown name; the message lists the known ones.

    Example:
      >>> from l2o.tasks import load_suite
      >>> len(load_suite("train/fast").tasks)
      4
    """
    known = suites()
    if name not in known:
        raise ValueError(unknown_name("suite", name, known))
    return known[name]


def task_specs(names: str | Sequence[str]) -> dict[str, TaskSpec]:
    """The specs that names stand for, by the names of the tasks; loads no data.

    Args:
      names: of tasks, of suites (all their tasks), of kinds that need no option, or
        paths of JSON files: a list of specs with labels, see `TaskSpec.to_dict`. What
        ends in `.json` is a path, too.

    Raises:
      ValueError: an unknown name, one that is there twice, or a file that holds
        something else.

    Example:
      >>> from l2o.tasks import task_specs
      >>> list(task_specs("demo/heldout"))
      ['deep_mlp', 'conv', 'autoencoder', 'transformer_lm']
    """
    found: dict[str, TaskSpec] = {}
    for name in [names] if isinstance(names, str) else names:
        if name in suites():
            more = dict(suites()[name].tasks)
        elif name in named_tasks():
            more = {name: named_tasks()[name]}
        elif name in KINDS:
            more = {name: TaskSpec(name, label=name).check()}
        elif _is_file(name):
            more = _read(expanded(name))
        else:
            raise ValueError(_unknown(name))
        twice = sorted(found.keys() & more)
        if twice:
            raise ValueError(f"{', '.join(twice)}: named twice")
        found |= more
    return found


def held_out(spec: TaskSpec) -> str | None:
    """Why nothing may be trained or chosen on a task; None if it may.

    Either it is, but for augmentations, a task of a suite that is held out, or it has
    data that only such a suite has.

    Example:
      >>> from l2o.tasks import held_out, task_specs
      >>> held_out(task_specs("siren-hopper")["siren-hopper"])
      'siren-hopper of heldout/small'
      >>> held_out(task_specs("mlp16")["mlp16"])
    """
    tasks, data = _held_out()
    known = tasks.get(_bare(spec))
    if known is not None:
        return known
    shared = sorted(data.keys() & set(spec.datasets))
    return f"the data {shared[0]} of {data[shared[0]]}" if shared else None


@functools.cache
def _held_out() -> tuple[dict[str, str], dict[str, str]]:
    every = suites().values()
    tasks = {
        _bare(spec): f"{name} of {suite.name}"
        for suite in every
        if suite.heldout
        for name, spec in suite.tasks.items()
    }
    data = {
        dataset: suite.name
        for suite in every
        if suite.heldout == "tasks and data"
        for spec in suite.tasks.values()
        for dataset in spec.datasets
    }
    return tasks, data


def _bare(spec: TaskSpec) -> str:
    return dataclasses.replace(spec, augmentations=(), label="").to_json()


def make_family(name: str, /, **options: Any) -> TaskFamily:
    """The task family of that name: a named task, or a kind with options.

    Args:
      name: a named task (`l2o tasks` lists them), or a key of `KINDS`.
      **options: keyword arguments of the kind; one's own datasets may be among them,
        which a `TaskSpec` cannot hold. A named task has its own; of a name that is
        both, options make it the kind.

    Raises:
      ValueError: an unknown name or option; the message suggests a known one.

    Example:
      >>> from l2o.tasks import make_family
      >>> make_family("mlp32").name
      'mlp32'
      >>> make_family("quadratic", dim=3).name
      'quadratic3'
    """
    if name in KINDS and (options or name not in named_tasks()):
        return make_kind(name, options)
    if name not in named_tasks():
        raise ValueError(_unknown(name))
    if options:
        raise ValueError(
            f"the task {name} has its options, {', '.join(options)} cannot be given: "
            f"name its kind, {named_tasks()[name].kind}, with all of them"
        )
    return named_tasks()[name].family()


def _unknown(name: str) -> str:
    return unknown_name(
        "task",
        name,
        [*named_tasks(), *suites(), *KINDS],
        listed="`l2o tasks` lists the known ones",
        paths="a JSON file of tasks",
    )


def _is_file(name: str) -> bool:
    """Whether a text that names no task means a file; suites have slashes, too."""
    if name.endswith(".json") or is_path(name):
        return True
    return has_separator(name) and Path(name).exists()


def _read(path: Path) -> dict[str, TaskSpec]:
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, list) or not all(isinstance(x, dict) for x in content):
        raise ValueError(f"{path} holds no list of task specs")
    with reading(path, "a list of task specs"):
        specs = [TaskSpec.from_dict(each) for each in content]
    labels = [spec.label for spec in specs]
    if not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"{path}: every task needs a label")
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"{path}: {', '.join(twice)}: named twice")
    return dict(zip(labels, specs, strict=True))
