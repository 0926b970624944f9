"""Others' optimizers, tasks, data and presets: registered, or installed beside l2o."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import l2o
from l2o import doors, tasks
from l2o.doors import Door
from l2o.meta_train import Config, presets

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A throw-away environment: the packages of this one, and a stranger's."""
    folder = tmp_path_factory.mktemp("stranger")
    source = folder / "source"
    shutil.copytree(HERE / "stranger", source)
    where = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([*command, "--target", where, source], check=True)
    return where


def run(installed, *lines):
    """Python in which the stranger's distribution is installed."""
    paths = [str(installed), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    code = "from l2o.meta_train.cli._main import main\n" + "\n".join(lines)
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=installed.parent,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(installed):
    """A run of the stranger's preset, in a process where it is installed."""
    out = installed.parent / "run"
    line = f"main(['meta-train', '--preset', 'stranger_preset', '--out', {str(out)!r}])"
    made = run(
        installed,
        f"assert {line} == 0",
        "assert main(['list']) == 0",
        "import l2o, l2o.tasks as tasks",
        "spec = tasks.TaskSpec('image_mlp', {'datasets': ('stranger_stripes',)})",
        "assert spec.check().datasets == ('stranger_stripes',)",
        "assert tasks.load_dataset('stranger_stripes').train['x'].shape == (28, 40)",
        f"assert l2o.load_unbound({str(out / 'frozen')!r})[0].name == 'stranger_sgd'",
        "half = l2o.make('stranger_half', optimizer={'name': 'stranger_sgd', "
        "'arguments': {'learning_rate': 0.5}})",
        "import jax, jax.numpy as jnp",
        "tx = half.bind(half.init_theta(jax.random.key(0)))",
        "assert l2o.make('small_fc').name == 'small_fc'",
        "try:",
        "    l2o.make('stranger_broken')",
        "except ValueError as error:",
        "    print(error)",
        "print(float(tx.update(jnp.ones(1), tx.init(jnp.ones(1)))[0][0]))",
    )
    assert made.returncode == 0, made.stderr
    return out, made.stdout.splitlines()


def test_a_stranger_s_names_are_meta_trained_listed_and_loaded(trained):
    out, lines = trained
    assert lines[-1] == "-0.25"
    assert any("stranger_sgd" in line for line in lines)
    assert any("stranger_preset" in line for line in lines)
    # What is broken is listed, and nothing else suffers.
    (broken,) = (line for line in lines if line.startswith("cannot be used: "))
    assert "'stranger_broken' of the distribution l2o-stranger" in broken
    card = json.loads((out / "frozen" / "config.json").read_text())
    assert card["optimizer"]["name"] == "stranger_sgd"
    # Where it is not installed, its name is unknown.
    with pytest.raises(ValueError, match="unknown learned optimizer 'stranger_sgd'"):
        l2o.load(out / "frozen")


@pytest.mark.exhaustive
def test_a_stranger_s_names_are_taken_by_every_command(installed, trained, tmp_path):
    commands = [
        [
            "evaluate",
            "--preset",
            "stranger_preset",
            "--optimizers",
            trained[0] / "frozen",
        ],
        [
            "diagnose",
            "stranger_sgd",
            "--family",
            "stranger_bowl",
            "--lengths",
            "2",
            "4",
        ],
        ["tradeoffs", "--variants", "stranger_sgd", "--until", "costs"],
    ]
    commands[1] += ["--particles", "16", "--runs", "2", "--points", "5"]
    lines = [
        f"assert main({[*map(str, x), '--out', str(tmp_path / x[0])]!r}) == 0"
        for x in commands
    ]
    made = run(installed, *lines, "assert main(['tasks', 'stranger_bowl']) == 0")
    assert made.returncode == 0, made.stderr
    assert json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())
    assert (tmp_path / "diagnose" / "diagnosis.json").exists()
    assert (tmp_path / "tradeoffs" / "tradeoffs.json").exists()


def test_what_cannot_be_imported_is_an_error_of_its_own_name_alone(trained):
    assert trained[1][-2] == (
        "the learned optimizer 'stranger_broken' of the distribution l2o-stranger "
        "cannot be used: l2o_stranger.broken:optimizer fails with RuntimeError: this "
        "machine has no abacus"
    )


class _Distribution:
    def __init__(self, name):
        self.name = name


def _point(name, value, group, distribution):
    point = metadata.EntryPoint(name, value, group)
    object.__setattr__(point, "dist", _Distribution(distribution))
    return point


@pytest.fixture
def announced(monkeypatch):
    """Entry points as if they were installed."""

    def announce(*points):
        monkeypatch.setattr(
            doors.metadata,
            "entry_points",
            lambda group: [x for x in points if x.group == group],
        )
        doors._entry_points.cache_clear()

    yield announce
    doors._entry_points.cache_clear()


def test_a_name_that_two_claim_is_an_error_that_names_both(announced):
    announced(
        _point("abs", "builtins:abs", "x", "first"),
        _point("abs", "builtins:len", "x", "second"),
        _point("own", "builtins:len", "x", "third"),
        _point("good", "builtins:len", "x", "third"),
    )
    door = Door("thing", "x", {"own": 1})
    with pytest.raises(ValueError, match="'abs' is claimed by first and second: unin"):
        door["abs"]
    with pytest.raises(ValueError, match="'own' is claimed by l2o and third"):
        door["own"]
    assert door["good"] is len and list(door) == ["own", "abs", "good"]
    with pytest.raises(ValueError, match="'good' is there already, from third"):
        door.register("good", abs)
    assert door.usable() == {"good": len}


def test_a_distribution_that_is_found_twice_counts_once(announced):
    announced(*[_point("abs", "builtins:abs", "x", "first")] * 2)
    assert Door("thing", "x", {})["abs"] is abs


def test_a_wrapper_and_an_optimizer_of_one_name(announced):
    announced(_point("grafted", "l2o:small_fc", "l2o.optimizers", "someone"))
    with pytest.raises(ValueError, match="wrapper of l2o and a learned .* of someone"):
        l2o.make("grafted")


def test_what_an_entry_point_names_is_checked(announced):
    announced(_point("three", "math:pi", "l2o.optimizers", "someone"))
    with pytest.raises(
        ValueError, match="distribution someone .* TypeError: expected a"
    ):
        l2o.make("three")
    with pytest.raises(TypeError, match="expected a function that returns a Learned"):
        l2o.register("pi", 3.14)


def test_registered_names_are_known_everywhere(tmp_path):
    def plain_sgd(learning_rate=0.1):
        return l2o.learnable_sgd(learning_rate=learning_rate)._replace(name="plain_sgd")

    l2o.register("plain_sgd", plain_sgd)
    l2o.register("plain_sgd", plain_sgd)  # a module that is imported again
    tasks.register_kind("bowl", lambda dim=2: tasks.quadratic(dim))
    tasks.register_task("bowl5", tasks.TaskSpec("bowl", {"dim": 5}))
    optimizer = l2o.make("plain_sgd", learning_rate=0.3)
    theta = optimizer.init_theta(jax.random.key(0))
    again, loaded = l2o.load_unbound(l2o.save(tmp_path / "mine", optimizer, theta))
    assert again.name == "plain_sgd" and loaded == theta
    config = Config(optimizer="plain_sgd", families=("bowl", "bowl5"))
    assert set(tasks.task_specs(config.families)) == {"bowl", "bowl5"}
    assert tasks.make_family("bowl5").name == "bowl5"
    for register, thing in (
        (l2o.register, plain_sgd),
        (tasks.register_kind, abs),
        (tasks.register_dataset, abs),
    ):
        taken = {l2o.register: "velo", tasks.register_kind: "lasso"}
        with pytest.raises(ValueError, match="there already, from l2o: take another"):
            register(taken.get(register, "digits"), thing)
    with pytest.raises(ValueError, match="'bowl5' is there already"):
        tasks.register_task("bowl5", tasks.TaskSpec("bowl"))
    with pytest.raises(TypeError):
        l2o.factories()["mine"] = plain_sgd  # read-only


PRESET = """'''Mine, for a test.

More.
'''
from l2o.meta_train import Config, Evaluation
META_TRAIN = Config(outer_steps=7, outer_warmup=0)
EVALUATION = Evaluation(steps=25)
"""


def test_a_preset_may_be_a_file(tmp_path, capsys):
    from l2o.meta_train.cli._main import main

    path = tmp_path / "mine.py"
    path.write_text(PRESET)
    assert presets.load(str(path)).meta_train.outer_steps == 7
    assert presets.summary(str(path)) == "Mine, for a test."
    with pytest.raises(SystemExit):
        main(["meta-train", "--preset", str(path), "--help"])
    assert "(default: 7)" in capsys.readouterr().out
    path.write_text("1 / 0")
    with pytest.raises(ValueError, match="mine.py cannot be used: ZeroDivisionError"):
        presets.load(str(path))
    path.write_text("META_TRAIN = 3")
    with pytest.raises(ValueError, match="module with META_TRAIN, a Config"):
        presets.load(str(path))
    with pytest.raises(FileNotFoundError, match="no preset .*nope.py"):
        presets.load(str(tmp_path / "nope.py"))


def test_old_names_work_and_warn():
    for module, names in {
        l2o: (
            *("clip", "weight_decay", "nadamw", "load_theta", "FACTORIES", "WRAPPERS"),
            "celo2_velo",
        ),
        tasks: ("make", "resolve", "load", "l2o_scale"),
    }.items():
        for name in names:
            with pytest.warns(DeprecationWarning, match=rf"{name} is called .* 0\.2"):
                assert callable(getattr(module, name)) or getattr(module, name)
    shipped = {"celo2_mixed": l2o.read_card, "celo2_orthogonal": l2o.load_unbound}
    for name, read in {**shipped, "celo2_mixed": presets.load}.items():
        with pytest.warns(DeprecationWarning, match=rf"{name} is called n.* 0\.2"):
            read(name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = l2o.nonsense
    # What files of before call them.
    inner = {"name": "learnable_sgd", "arguments": {}}
    optimizer = l2o.make("clip", optimizer=inner, bound=0.5)
    assert optimizer.name == "clip_gradients"
    tx = optimizer.bind(optimizer.init_theta(jax.random.key(0)))
    updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)))
    assert float(updates[0]) == pytest.approx(-0.5 * 0.01)


def test_a_run_whose_optimizer_had_another_name_is_the_same_run():
    from l2o.meta_train.training._folder import _completed

    inner = {"name": "learnable_sgd", "arguments": {"learning_rate": 0.1}}
    wrapped = {"name": "clip", "arguments": {"optimizer": inner, "bound": 3.0}}
    options = {"optimizer": wrapped, "rate": 0.1}
    now = _completed({"optimizer": "weight_decay", "optimizer_options": options})
    assert now["optimizer"] == "decay_weights"
    assert now["optimizer_options"]["optimizer"]["name"] == "clip_gradients"
