"""What users name means the same everywhere, whatever lies in the current folder."""

import os
from pathlib import Path

import jax
import pytest
from rich.console import Console

import l2o
from l2o.meta_train import Config, Diagnosis, diagnose_source, follow, presets
from l2o.meta_train.cli._main import main
from l2o.meta_train.diagnosis._report import _resolve
from l2o.meta_train.evaluation import baselines, entrant, load_board
from l2o.meta_train.evaluation._evaluate import suite_of
from l2o.meta_train.tradeoffs import load_study
from l2o.meta_train.training._outer import outer_optimizer
from l2o.meta_train.training._recipe import make_estimator
from l2o.names import is_hub_id, is_path
from l2o.tasks import load_suite, make_family, sample_spec, suites, task_specs
from l2o.tasks._registry import named_tasks
from l2o.tasks.data import load_dataset as load_dataset

DECOY = l2o.learnable_sgd()
RATED = l2o.celo2(hidden_size=2, hidden_layers=1)
TASKS = [*suites(), *list(named_tasks())[:5]]
WEIGHTS = l2o.shipped()


def _theta(optimizer):
    return optimizer.init_theta(jax.random.key(0))


def _seen(loaded):
    """An optimizer and its theta, as they can be compared."""
    optimizer, theta = loaded
    leaves = [x.tolist() for x in jax.tree.leaves(theta)]
    return optimizer.name, dict(optimizer.arguments), leaves


# What each function that takes a name makes of it.
MEANINGS = {
    "load_unbound": (WEIGHTS, lambda name: _seen(l2o.load_unbound(name))),
    "read_card": (WEIGHTS, l2o.read_card),
    "make": (list(l2o.factories()), lambda name: l2o.make(name).arguments),
    "entrant": ([*WEIGHTS, *baselines()], lambda name: entrant(name).identity),
    "diagnose": (["mlp", *WEIGHTS], lambda name: _seen(_resolve(name, 0, {}))),
    "preset": (presets.names(), lambda name: presets.load(name)),
    "suite": (list(suites()), lambda name: list(load_suite(name).tasks)),
    "suite_of": (TASKS, lambda name: list(suite_of(name).tasks)),
    "tasks": (TASKS, lambda name: task_specs(name)),
    "family": (TASKS[-2:], lambda name: make_family(name).name),
}


@pytest.mark.parametrize("what", ["folders of weights", "files"])
def test_decoys_in_the_current_folder_change_nothing(what, tmp_path):
    expected = {
        (kind, name): meaning(name)
        for kind, (names, meaning) in MEANINGS.items()
        for name in names
    }
    for name in sorted({name for _, name in expected}, reverse=True):
        path = tmp_path / name
        if what != "files" or path.is_dir():  # as "demo" is, of "demo/train"
            l2o.save(path, DECOY, _theta(DECOY))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text("[]")
    for (kind, name), meant in expected.items():
        assert MEANINGS[kind][1](name) == meant, (kind, name)


def test_commands_take_no_decoys(tmp_path, capsys):
    commands = (
        ["tasks", "quadratic10"],
        ["meta-train", "--preset", "demo", "--help"],
        ["meta-train", "--preset", "smoke", "--preset", "demo", "--help"],
    )
    told = [_told(line, capsys) for line in commands]
    for name in ("quadratic10", "demo", "smoke"):
        l2o.save(tmp_path / name, DECOY, _theta(DECOY))
    assert [_told(line, capsys) for line in commands] == told
    assert told[1] == told[2]  # the last preset counts


def _told(line, capsys):
    try:
        main(line)
    except SystemExit as error:
        assert not error.code
    return capsys.readouterr().out


def _console():
    return Console(quiet=True)


# Where a path may stand, too.
TAKES_PATHS = {
    "load": l2o.load,
    "load_unbound": l2o.load_unbound,
    "read_card": l2o.read_card,
    "entrant": entrant,
    "diagnose": lambda name: diagnose_source(
        name, Diagnosis(), Path("out"), console=_console()
    ),
    "tasks": task_specs,
    "config": lambda name: Config(families=(name,)),
}
MISTYPED = {
    "load": ("adaptive_muo", "adaptive_muon"),
    "load_unbound": ("small_fc_mixd", "small_fc_mixed"),
    "read_card": ("muon_fats", "muon_fast"),
    "entrant": ("muon_fats:0.1", "muon_fast"),
    "diagnose": ("smal_fc", "small_fc"),
    "tasks": ("train/fats", "train/fast"),
    "config": ("quadratic11", "quadratic10"),
    "make": ("smal_fc", "small_fc"),
    "preset": ("smok", "smoke"),
    "suite": ("train/fats", "train/fast"),
    "family": ("mlp61", "mlp16"),
    "estimator": ("nrse", "nres"),
    "outer": ("adamm", "adam"),
    "distribution": ("image_mpl", "image_mlp"),
    "dataset": ("digts", "digits"),
}
TAKES_NAMES = {
    **TAKES_PATHS,
    "make": l2o.make,
    "preset": presets.load,
    "suite": load_suite,
    "family": make_family,
    "estimator": lambda name: make_estimator(name, None, None, {}),
    "outer": lambda name: outer_optimizer(1e-3, warmup=1, steps=2, clip=1.0, name=name),
    "distribution": lambda name: sample_spec(jax.random.key(0), kinds=(name,)),
    "dataset": load_dataset,
}


@pytest.mark.parametrize("kind", TAKES_NAMES)
def test_mistyped_names_are_met_with_the_nearest(kind):
    name, meant = MISTYPED[kind]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        TAKES_NAMES[kind](name)
    assert f"{name.partition(':')[0]!r}; " in str(error.value)
    assert "Did you mean " in str(error.value) and f"'{meant}'" in str(error.value)


@pytest.mark.parametrize("kind", TAKES_PATHS)
def test_bare_words_that_lie_here_ask_for_a_path(kind, tmp_path):
    l2o.save(tmp_path / "mine", DECOY, _theta(DECOY))
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"write a path: \./mine$"
    ):
        TAKES_PATHS[kind]("mine")
    with pytest.raises(
        (ValueError, FileNotFoundError), match=r"write a path: \./NAME$"
    ):
        TAKES_PATHS[kind]("theirs")


def test_one_module_alone_suggests_names():
    root = Path(l2o.__file__).parent
    users = [
        path for path in root.rglob("*.py") if "difflib" in path.read_text("utf-8")
    ]
    ours = {path.relative_to(root).as_posix() for path in users}
    assert ours == {"names.py", "tasks/data/_text.py"}  # the second reads its text


# Paths.


def test_paths_by_their_spelling():
    for name in (".", "..", "./a", "../a", "~", "~/a", "/a", "a/", "a/b/c", ".a/b"):
        assert is_path(name) and not is_hub_id(name), name
    for name in ("a", "a.b", "a:b", "a+b", "", "a\\b" if os.sep == "/" else "a"):
        assert not is_path(name) and not is_hub_id(name), name
    for name in ("a/b", "a-b/c.d", "a/b@main"):
        assert is_hub_id(name) and not is_path(name), name
    assert is_path(Path("a")) and is_path(Path("a/b"))


@pytest.mark.parametrize(
    "spelled", ["./adaptive_muon", "../here/adaptive_muon", "here/", "~/w", "x/frozen"]
)
def test_paths_are_taken_as_such(spelled, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    l2o.save(spelled, RATED, _theta(RATED))
    assert not (here / "~").exists()
    for source in (spelled, Path(spelled)):
        assert l2o.load_unbound(source)[0].name == "celo2"
        assert l2o.read_card(source)["optimizer"]["name"] == "celo2"
    assert _resolve(spelled, 0, {})[0].name == "celo2"
    for text in (spelled, f"{spelled}:0.1", f"{spelled}+cosine"):
        if spelled != "here/":  # whose name is its own
            made = entrant(text)
            assert made.identity["optimizer"] == "celo2"
            short = "x" if spelled == "x/frozen" else Path(spelled).name
            assert made.name in (short, f"{short}+cosine", f"{spelled}:0.1")


def test_marks_in_the_name_of_a_folder_are_its_own():
    for path in ("./runs/a+b", "./runs/lr:0.1", "runs/a+cosine"):
        l2o.save(path, RATED, _theta(RATED))
        assert entrant(path).name == Path(path).name
    rated = entrant("./runs/a+b:0.3")
    assert (rated.name, rated.space) == ("./runs/a+b:0.3", (0.3,))


def test_home_is_expanded_wherever_a_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = str(tmp_path / "home" / "none")
    for call in (
        lambda: follow("~/none", console=_console()),
        lambda: load_board(["~/none"]),
        lambda: load_study("~/none"),
        lambda: task_specs("~/none"),
        lambda: l2o.load("~/none/params"),
    ):
        with pytest.raises((ValueError, OSError)) as error:
            call()
        assert home in str(error.value) or "~/none/params" in str(error.value)
    assert main(["report", "~/none"]) == 2
    assert home in capsys.readouterr().err


@pytest.mark.parametrize("source", [None, 3, b"small_fc_digits", ["small_fc_digits"]])
def test_what_is_no_name_is_refused(source):
    with pytest.raises(TypeError, match="names no weights: give the name of a shipped"):
        l2o.load(source)
