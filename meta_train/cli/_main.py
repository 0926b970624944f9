"""The `l2o` command."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import tyro
from rich.console import Console

import l2o
from l2o.names import unknown_name

from .. import presets
from .._config import Config, Evaluation, Following, Option
from .._mesh import Topology
from .._processes import ProcessLost, is_main
from ..diagnosis._report import diagnose_source
from ..diagnosis._settings import Diagnosis
from ..evaluation._entrants import weights_in
from ..evaluation._follow import follow
from ..tradeoffs import Options, study
from ..training._run import Result, run
from ._arguments import as_options, parse
from ._demo import demo
from ._evaluate import evaluate_command, report_command
from ._groups import GROUPS, collect, grouped, parse_groups
from ._hints import hint, hint_use
from ._hub import fetch
from ._list import print_list, show
from ._process import configure_process, share_cores
from ._tasks import list_tasks, show_task

_USAGE = """usage: l2o COMMAND [options]

commands:
  demo        meta-train a preset, freeze it, evaluate it in a fresh process, report
  meta-train  meta-train a learned optimizer, or resume an interrupted run
  evaluate    optimizers, learned or not, beside tuned Adam on the tasks of a suite;
              with --follow RUN: score the checkpoints of a run in progress
  report      one HTML page about runs and evaluations; --serve shows it live
  tradeoffs   memory, compute and performance of all architectures and variants
  diagnose    variance and bias of every meta-gradient estimator; which one to use
  tasks       suites and their tasks, with data and cost; --show draws one's curves
  list        the names there are: architectures, weights, estimators, presets, suites
  show        everything about one of them

`l2o COMMAND --help` shows a command's options, `l2o --version` the version.
"""

P = TypeVar("P", str, None)
_Preset = Annotated[
    str,
    tyro.conf.arg(help="Preset that is run; `l2o list presets` shows them."),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Demo:
    """Meta-train a preset, freeze it, evaluate it in a fresh process, report."""

    preset: _Preset = "demo"
    out: Path | None = None
    """Folder for everything, by default runs/PRESET; an unfinished run is resumed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _First:
    """Meta-train a learned optimizer; the same command resumes an interrupted run."""

    preset: str | None = None
    """Preset whose settings are the defaults; `l2o list presets` shows them."""
    out: Path
    """Folder for config, metrics, checkpoints and the frozen optimizer."""
    override: bool = False
    """Resume with changed options that leave the state as it is, such as outer-lr."""
    download: bool = False
    """Fetch --start-from from the model hub, where the local cache lacks it."""


# `--help` shows the first options, and `--help-all` all of them.
_META_TRAIN = grouped(_First, Config, GROUPS, topology=Topology)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evaluate:
    """Optimizers, learned or not, beside tuned Adam on the tasks of a suite.

    What was evaluated before under the same settings is not run again.
    `l2o evaluate --follow RUN` scores the checkpoints of a run in progress instead;
    `l2o evaluate --follow RUN --help` shows its options.
    """

    config: tyro.conf.OmitArgPrefixes[Evaluation]
    preset: str | None = None
    """Preset whose settings are the defaults; `l2o list presets` shows them."""
    run: Path | None = None
    """Folder of the meta-training run, for its curve in the report."""
    out: Path = Path("runs/evaluation")
    """Folder for the results, evaluation.json and report.html."""
    download: bool = False
    """Fetch weights named OWNER/NAME from the model hub, where the local cache lacks
    them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Report:
    """One HTML page about a meta-training run, evaluations, or both.

    Evaluations of one protocol are put together.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """What `l2o meta-train --out` and `l2o evaluate --out` wrote."""
    out: Path | None = None
    """Folder for report.html; by default the first of the folders."""
    serve: bool = False
    """Serve the page on the local host instead; every visit renews it."""
    port: int = 8000
    """Port that --serve uses; 0 takes a free one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Follow:
    """Score every new checkpoint of a run on fresh tasks, until the run is complete.

    Scores go to RUN/evaluations.jsonl; RUN/best holds the best checkpoint so far.
    A score is the mean loss on the split `outer_valid`: lower is better. The mean is
    over tasks, draws and all points of the curves but the first. Losses are bounded as
    the task's meta-loss is.
    """

    follow: Path
    """RUN: the folder that `l2o meta-train --out` writes."""
    config: tyro.conf.OmitArgPrefixes[Following]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tradeoffs:
    """Memory, compute and performance of every architecture and its variants.

    The same command resumes an interrupted study.
    """

    config: tyro.conf.OmitArgPrefixes[Options]
    scale: str = "smoke"
    """Size of the study: smoke (a minute), laptop (hours) or cluster (everything)."""
    out: Path = Path("runs/tradeoffs")
    """Folder for tradeoffs.json, figures and what was measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Diagnose:
    """Measure every meta-gradient estimator at a theta, and recommend one."""

    source: tyro.conf.Positional[str]
    """An architecture, for theta as drawn; or weights, as `l2o.load` takes them."""
    config: tyro.conf.OmitArgPrefixes[Diagnosis] = dataclasses.field(
        default_factory=Diagnosis
    )
    options: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Arguments of the factory, such as `learning_rate 1e-3` of celo2."""
    out: Path = Path("runs/diagnosis")
    """Folder for diagnosis.json and diagnosis.svg."""
    download: bool = False
    """Fetch weights named OWNER/NAME from the model hub, where the local cache lacks
    them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tasks:
    """Suites and their tasks: parameters, data, cost of an inner step."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Suites, tasks or JSON files; all suites by default."""
    measure: bool = False
    """Time an inner step of every task whose data are present; the time is kept."""
    show: str | None = None
    """Draw this task's learning curves under Adam instead."""
    steps: int = 500
    """Inner steps of the curves."""
    out: Path = Path(".")
    """Folder for the picture, TASK.svg."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _List:
    """The names there are, of all kinds or of one."""

    kind: tyro.conf.Positional[str | None] = None
    """architectures, weights, published, wrappers, estimators, presets, suites or
    baselines: a line for each of them."""
    json: bool = False
    """Print them as JSON, with all that is known of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Show:
    """Everything about an architecture, weights, a preset, an estimator or a task."""

    name: tyro.conf.Positional[str]
    """A name that `l2o list` or `l2o tasks` prints, or a folder of weights."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "demo": _run_demo,
        "meta-train": _run_meta_train,
        "evaluate": _run_evaluate,
        "report": _run_report,
        "tradeoffs": _run_tradeoffs,
        "diagnose": _run_diagnose,
        "tasks": _run_tasks,
        "list": _run_list,
        "show": _run_show,
    }
    if arguments == ["--version"]:
        print(f"l2o {l2o.__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] not in commands:
        message = unknown_name("command", arguments[0], commands)
        print(f"l2o: {message}", file=sys.stderr)
        return 2
    try:
        return commands[arguments[0]](arguments[1:])
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        if isinstance(error, jax.errors.JAXTypeError):
            raise  # a defect, not bad input
        print(f"l2o: {as_options(str(error))}", file=sys.stderr)
        return 2


def _run_demo(arguments: list[str]) -> int:
    options = parse("demo", _Demo, arguments)
    out = options.out or Path("runs") / options.preset
    configure_process()
    share_cores(presets.load(options.preset).meta_train.particles, Topology())
    return _status(demo(options.preset, out, Console(markup=False)))


def _run_meta_train(arguments: list[str]) -> int:
    preset = _preset(arguments, None)
    defaults = presets.load(preset).meta_train if preset else Config()
    # tyro makes of a mapping that is not empty an option per key, and takes no others.
    none: dict[str, Any] = {name: {} for name in _OPTIONS_OF}
    bare = dataclasses.replace(defaults, **none)
    options = parse_groups(
        "meta-train", _META_TRAIN, arguments, bare, preset=preset, out=tyro.MISSING
    )
    config = _with_options(collect(options, Config), defaults)
    console = Console(markup=False)
    configure_process()
    share_cores(config.particles, options.topology)
    if options.download and config.start_from is not None:
        fetch([config.start_from])
    try:
        result = run(
            config,
            options.out,
            console=console,
            override=options.override,
            topology=options.topology,
        )
    except ProcessLost as error:
        print(f"l2o: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # an ordinary end would wait for the lost one
    if result.completed and result.frozen is not None and is_main():
        console.print(
            f"frozen optimizer: {result.frozen}", highlight=False, soft_wrap=True
        )
        hint_use(console, result.frozen)
        frozen = ("--optimizers", result.frozen, "--run", options.out)
        beside = "it beside tuned Adam on unseen tasks"
        hint(console, beside, "l2o", "evaluate", *frozen)
    return _status(result)


# Fields of a `Config` that are keyword arguments of what another field names.
_OPTIONS_OF = {
    "optimizer_options": "optimizer",
    "estimator_options": "estimator",
    "outer_options": "outer_optimizer",
}


def _with_options(config: Config, defaults: Config) -> Config:
    """With the preset's keyword arguments of what is the preset's, if none is given."""
    return dataclasses.replace(
        config,
        **{
            name: getattr(defaults, name)
            for name, owner in _OPTIONS_OF.items()
            if not getattr(config, name)
            and getattr(config, owner) == getattr(defaults, owner)
        },
    )


def _status(result: Result) -> int:
    """1 for a run that stopped early; one that a signal ended did as it was told."""
    return 1 if result.frozen is not None and not result.completed else 0


def _run_evaluate(arguments: list[str]) -> int:
    if any(a == "--follow" or a.startswith("--follow=") for a in arguments):
        following = parse("evaluate", _Follow, arguments)
        configure_process()
        follow(following.follow, following.config, console=Console(markup=False))
        return 0
    preset = _preset(arguments, None)
    defaults = presets.load(preset).evaluation if preset else Evaluation()
    options = parse(
        "evaluate",
        _Evaluate,
        arguments,
        default=_Evaluate(config=defaults, preset=preset),
    )
    if not options.config.optimizers:
        raise ValueError(
            "name what to evaluate, such as `--optimizers adaptive_muon:0.03 adamw`; "
            "`adam` alone evaluates Adam"
        )
    configure_process()
    if options.download:
        fetch(map(weights_in, options.config.optimizers))
    console = _wide_console()
    evaluate_command(options.config, options.out, run=options.run, console=console)
    hint(console, "optimizers to compare", "l2o", "list", "weights")
    return 0


def _run_report(arguments: list[str]) -> int:
    options = parse("report", _Report, arguments)
    if not options.folders:
        raise ValueError("name a folder: of a run, or of an evaluation")
    report_command(
        options.folders,
        options.out,
        port=options.port if options.serve else None,
        console=_wide_console(),
    )
    return 0


def _wide_console() -> Console:
    """Where output is no terminal, tables are cut at no 80 columns."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=100)


def _run_tradeoffs(arguments: list[str]) -> int:
    options = parse(
        "tradeoffs", _Tradeoffs, arguments, default=_Tradeoffs(config=Options())
    )
    console = _wide_console()
    configure_process()
    share_cores(Config().particles, Topology())
    study(options.scale, options.out, console=console, options=options.config)
    hint(console, "a page of it", "l2o", "report", options.out)
    return 0


def _run_diagnose(arguments: list[str]) -> int:
    options = parse("diagnose", _Diagnose, arguments)
    configure_process()
    if options.download:
        fetch([options.source])
    console = Console(markup=False)
    findings = diagnose_source(
        options.source,
        options.config,
        options.out,
        console=console,
        options=options.options,
    )
    if options.source in l2o.factories():
        line = ["--optimizer", options.source, "--families", options.config.family]
        line += ["--estimator", findings.recommendation.estimator]
        out = ("--out", f"runs/{options.source}")
        hint(console, "with that estimator", "l2o", "meta-train", *line, *out)
    return 0


def _run_tasks(arguments: list[str]) -> int:
    options = parse("tasks", _Tasks, arguments)
    console = Console(markup=False)
    if options.show is not None:
        show_task(options.show, options.out, options.steps, console=console)
        line = ("--suite", options.show, "--optimizers", "adaptive_muon:0.03")
        hint(console, "optimizers on it", "l2o", "evaluate", *line)
    else:
        list_tasks(options.names, console=console, measure=options.measure)
        hint(console, "draws its curves", "l2o", "tasks", "--show", "TASK")
    return 0


def _run_list(arguments: list[str]) -> int:
    options = parse("list", _List, arguments)
    print_list(options.kind, options.json, Console(markup=False))
    return 0


def _run_show(arguments: list[str]) -> int:
    show(parse("show", _Show, arguments).name, Console(markup=False))
    return 0


def _preset(arguments: list[str], default: P) -> str | P:
    """The value of --preset: it decides the defaults that tyro shows and fills in.

    Of several the last counts, as for tyro.
    """
    chosen: str | P = default
    for i, argument in enumerate(arguments):
        if argument == "--preset":
            if i + 1 == len(arguments) or arguments[i + 1].startswith("--"):
                raise ValueError("--preset needs a value; `l2o list presets` has them")
            chosen = arguments[i + 1]
        elif argument.startswith("--preset="):
            chosen = argument.removeprefix("--preset=")
    return chosen
