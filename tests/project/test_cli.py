"""The `l2o` command: the whole job in small, and its complaints."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest

import l2o
from l2o.meta_train import (
    Config,
    Diagnosis,
    Evaluation,
    Following,
    Result,
    Topology,
    evaluate,
    presets,
)
from l2o.meta_train.cli import _main as cli
from l2o.meta_train.cli._arguments import option_names
from l2o.meta_train.cli._demo import _save_start, summary
from l2o.meta_train.cli._groups import GROUPS
from l2o.meta_train.cli._list import CATALOGUE
from l2o.meta_train.cli._main import main
from l2o.meta_train.tradeoffs import Options
from l2o.tasks import suites


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_demo_in_small(tmp_path):
    command = [sys.executable, "-m", "l2o.meta_train", "demo", "--preset", "smoke"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for words in ("meta-loss", "inner steps/s", "speed-up", "report:", "autoencoder"):
        assert words in done.stdout
    frozen = tmp_path / "run" / "frozen"
    assert sorted(p.name for p in frozen.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert l2o.read_card(frozen)["optimizer"]["name"] == "small_fc"
    content = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())
    assert content["tasks"] == ["deep_mlp", "autoencoder"]
    assert "Meta-training" in (tmp_path / "run/evaluation/report.html").read_text()


def test_the_demo_says_what_meta_training_added(tmp_path):
    config = Evaluation(suite="quadratic10", steps=50, seeds=2, trials=1)
    board = evaluate(config, own={"good": optax.sgd(0.5), "bad": optax.sgd(1e-6)})
    assert summary(board) == [
        "good: a lower training loss than tuned Adam on 1 of 1 tasks",
        "bad: a lower training loss than tuned Adam on 0 of 1 tasks",
        "meta-training lowered the training loss of its start on 1 of 1 tasks",
    ]
    demo = presets.load("demo").meta_train
    started = _save_start(demo, tmp_path / "start")
    assert l2o.load_unbound(started)[0].arguments["init"] == "nadam"
    assert _save_start(presets.load("smoke").meta_train, tmp_path / "no") is None


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in (
        *l2o.factories(),
        "small_fc_digits",
        "amoudgl/celo2-base",
        "train/broad",
        "heldout/small",
        "smoke",
        "pes",
    ):
        assert name in " ".join(out.split())
    assert len(out.splitlines()) <= 40


@pytest.mark.parametrize("kind", CATALOGUE)
def test_list_has_a_line_for_each_of_a_kind_and_json(kind, capsys):
    assert main(["list", kind, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert main(["list", kind]) == 0
    out = capsys.readouterr().out
    assert all(entry["name"] in out for entry in entries)
    assert main(["show", entries[0]["name"]]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_a_folder_of_weights_is_shown(capsys):
    optimizer = l2o.learnable_sgd()
    l2o.save("mine", optimizer, optimizer.init_theta(jax.random.key(0)))
    assert main(["show", "./mine"]) == 0
    out = capsys.readouterr().out
    assert '"name": "learnable_sgd"' in out
    assert "next: l2o evaluate --optimizers ./mine" in out
    assert main(["show", "./yours"]) == 2


def test_what_is_shown_is_what_there_is(capsys):
    assert main(["show", "celo2"]) == 0
    assert "orthogonalize = True" in capsys.readouterr().out
    assert main(["show", "muon_fast"]) == 0
    assert '"known_failures"' in capsys.readouterr().out
    assert main(["show", "smoke"]) == 0
    assert "outer_steps = " in capsys.readouterr().out
    assert main(["show", "mlp16"]) == 0
    assert '"kind"' in capsys.readouterr().out
    assert main(["show", "adaptive_muno"]) == 2
    assert "Did you mean 'adaptive_muon'" in capsys.readouterr().err
    assert main(["list", "preset"]) == 2
    assert "Did you mean 'presets'" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"l2o {l2o.__version__}\n"


def test_tasks_lists_suites_with_data_and_parameters(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    names = ["quadratic10", "mlp32-digits", "ImageMLP_Mnist_128x128x128_Relu"]
    assert main(["tasks", *names]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["mlp32-digits"].split() == ["mlp32-digits", "mlp", "digits", "2,410"]
    assert "mnist (absent)" in lines["ImageMLP_Mnist_128x128x128_Relu"]
    assert main(["tasks", "quadratic10", "--measure"]) == 0
    *_, row, hint = capsys.readouterr().out.splitlines()
    row = row.split()
    assert hint.startswith("next: l2o tasks --show")
    assert row[:4] == ["quadratic10", "quadratic", "-", "10"] and len(row) == 6
    # What was measured is remembered.
    assert main(["tasks", "quadratic10"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].split() == row
    assert main(["tasks", "demo/train"]) == 0
    assert "mlp32x32" in capsys.readouterr().out


def test_tasks_with_long_names_are_readable_in_a_narrow_terminal(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert main(["tasks", "heldout/velodrome"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 2 * len(suites()["heldout/velodrome"].tasks) + 5
    assert max(map(len, lines)) <= 80


def test_tasks_shows_one_with_its_learning_curves(capsys, tmp_path):
    folder = tmp_path / "curves"
    line = ["tasks", "--show", "quadratic10", "--steps", "40", "--out", str(folder)]
    assert main(line) == 0
    out = folder / "quadratic10.svg"
    told = capsys.readouterr().out
    assert '"kind": "quadratic"' in told and str(out) in told.replace("\n", "")
    assert "Adam, 0.01" in out.read_text() or out.read_text().count("<path") > 6
    assert main(["tasks", "--show", "demo/train"]) == 2
    assert "stands for 5 tasks" in capsys.readouterr().err
    assert main(["tasks", "--show", "quadratic11"]) == 2
    assert "Did you mean 'quadratic10'" in capsys.readouterr().err
    assert main(["tasks", "--show", "quadratic10", "--steps", "0"]) == 2
    assert "steps must be positive" in capsys.readouterr().err


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    assert "meta-train" in capsys.readouterr().out
    # What a beginner needs fits a screen; the rest is one command away.
    for line in ("--help", "-h", "--out x --help"):
        with pytest.raises(SystemExit) as done:
            main(["meta-train", *line.split()])
        assert done.value.code == 0
        out = capsys.readouterr().out
        assert "--outer-steps" in out and "Updates of theta" in out
        assert "--keep-every" not in out and len(out.splitlines()) < 48
    few = set(option_names(cli._META_TRAIN.first))
    rest = set(option_names(cli._META_TRAIN.every)) - few
    rest = {name for name in rest if not name.startswith("--no-")}
    assert out.splitlines()[-1].endswith(f"--help-all` shows {len(rest)} more options")


def test_every_field_is_an_option_of_one_group():
    grouped = [name for group in GROUPS.values() for name in group.names]
    fields = [field.name for field in dataclasses.fields(Config)]
    assert len(set(grouped)) == len(grouped) and set(grouped) <= set(fields)
    told = {name.removeprefix("--") for name in option_names(cli._META_TRAIN.every)}
    assert {name.replace("_", "-") for name in fields} <= told


def test_groups_hold_what_was_given(monkeypatch):
    seen = []

    def run(config, out, **kwargs):
        seen.append((config, out, kwargs["override"], kwargs["topology"]))
        return Result({}, l2o.learnable_sgd(), None, True, 3)

    monkeypatch.setattr(cli, "run", run)
    line = "--preset smoke --keep-every 7 --objective-log --outer-clip 2 --shard-theta"
    assert main(["meta-train", "--out", "x", "--override", *line.split()]) == 0
    config, out, override, topology = seen[0]
    told = {"keep_every": 7, "objective_log": True, "outer_clip": 2.0}
    assert config == dataclasses.replace(presets.load("smoke").meta_train, **told)
    assert (out, override) == (Path("x"), True)
    assert topology == Topology(shard_theta=True)


OPTIONS = {
    "demo": cli._Demo,
    "meta-train": cli._META_TRAIN.every,
    "evaluate": cli._Evaluate,
    "evaluate --follow x": cli._Follow,
    "report": cli._Report,
    "tradeoffs": cli._Tradeoffs,
    "diagnose": cli._Diagnose,
    "tasks": cli._Tasks,
    "list": cli._List,
    "show": cli._Show,
}


def test_every_command_is_among_those_whose_help_is_read():
    named = re.findall(r"^  ([a-z-]+) {2,}", cli._USAGE, re.MULTILINE)
    assert set(named) == {command.split()[0] for command in OPTIONS}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_is_for_users(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        main([*command.split(), "--help-all"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    # What is the source's: its comments, markers and modules.
    leaks = r"noqa|type:|ruff|mypy|TODO|UNSET|MISSING|<class|l2o\.\w+\._|\b_[a-z]|\w\("
    assert not re.search(leaks, text), re.findall(leaks, text)
    # Every option is there, and is described by more than what it takes.
    lines = [line.strip("│ ") for line in text.splitlines()]
    blocks = re.split(r"\n(?=--[a-z]|-h|[\[A-Z]+ )", "\n".join(lines))
    shown = {}
    for block in blocks:
        for name in re.findall(
            r"--[a-z][a-z-]*\b", block.partition("\n")[0].split("  ")[0]
        ):
            shown[name] = block
    assert shown.keys() - {"--help"} == set(option_names(OPTIONS[command]))
    for name, block in shown.items():
        takes = r"\(default:.*?\)|\(required\)|\{[^}]*\}|--[a-z-]+"
        words = re.findall(r"\b[A-Za-z][a-z]+\b", re.sub(takes, "", block))
        assert len(words) >= 2, name


@pytest.mark.parametrize(
    "options", [Config, Diagnosis, Evaluation, Following, Options, Topology]
)
def test_every_option_is_explained_in_pythons_help_too(options):
    documented = re.findall(r"^  (\w+): \S", inspect.getdoc(options), re.MULTILINE)
    assert documented == [field.name for field in dataclasses.fields(options)]


def test_options_that_messages_name_exist():
    known = {"--help", "--help-all", "--version"}.union(
        *map(option_names, OPTIONS.values())
    )
    known |= {"--no", "--factors"}  # a prefix; an option of a script
    folder = Path(cli.__file__).parents[1]
    for path in folder.rglob("*.py"):
        # Those of a page's style sheet are followed by a colon or in `var(...)`.
        option = r"(?<![\w(-])--[a-z][a-z-]*\b(?!:)"
        for name in re.findall(option, path.read_text()):
            assert name in known, (path.name, name)


def test_a_preset_fills_the_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["meta-train", "--preset", "smoke", "--help"])
    assert "(default: 20)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "line, options",
    [
        (
            "--preset small_fc_mixed",
            dict(presets.load("small_fc_mixed").meta_train.optimizer_options),
        ),
        ("", {}),
        ("--optimizer-options step_mult 0.01 exp_mult 0.1", None),
        # The preset's are for its own optimizer.
        ("--preset small_fc_mixed --optimizer celo", {}),
        ("--optimizer celo --optimizer-options train_phase 1", {"train_phase": 1}),
    ],
)
def test_options_of_the_preset_are_for_its_optimizer(line, options, monkeypatch):
    seen = []

    def run(config, out, **kwargs):
        seen.append(config)
        return Result({}, l2o.learnable_sgd(), None, True, 3)

    monkeypatch.setattr(cli, "run", run)
    assert main(["meta-train", "--out", "x", *line.split()]) == 0
    expected = {"step_mult": 0.01, "exp_mult": 0.1} if options is None else options
    assert seen[0].optimizer_options == expected


def test_what_changed_is_refused_until_it_is_overridden(tmp_path, capsys):
    line = ["meta-train", "--preset", "smoke", "--optimizer", "learnable_sgdm"]
    line += ["--families", "quadratic10", "--out", str(tmp_path / "run")]
    assert main([*line, "--outer-steps", "6"]) == 0
    assert main([*line, "--outer-steps", "8"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "  outer_steps: 6 -> 8" in told and "--override" in told[-1]
    assert main([*line, "--outer-steps", "8", "--override"]) == 0
    assert "outer_steps: 6 -> 8" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["meta-train --out x", "demo"])
def test_a_run_that_stopped_early_is_a_failure(command, monkeypatch):
    import l2o.meta_train.cli._demo as module

    ended = Result({}, l2o.learnable_sgd(), Path("x/frozen"), False, 3)
    for where in (cli, module):
        monkeypatch.setattr(where, "run", lambda *args, **kwargs: ended)
    assert main(command.split()) == 1
    # One that a signal ended has done as it was told.
    ended = ended._replace(frozen=None)
    assert main(command.split()) == 0


def test_an_unwritable_output_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "run")
    assert main(["meta-train", "--preset", "smoke", "--out", out]) == 2
    assert capsys.readouterr().err.startswith("l2o: ")
