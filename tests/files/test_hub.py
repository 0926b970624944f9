"""Weights from a model hub, which is not there."""

import re
import sys
import types
from pathlib import Path

import pytest
from weight_files import (
    PYLO,
    PYLO_VELO,
    SMALL,
    assert_same,
    save_pylo,
    some_theta,
    write_flax,
)

import l2o
from l2o.files._hub import IMPORTABLE
from l2o.files._trees import to_tree
from l2o.meta_train.cli._main import main

# A model hub, which is not there.


class FakeHub(types.ModuleType):
    """`huggingface_hub` with a local cache and nothing behind it."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.calls = root, []

    def folder(self, repository, revision=None):
        name = "models--" + repository.replace("/", "--")
        return self.root / name / "snapshots" / (revision or "main")

    def add_velo(self, owner, optimizer, theta):
        saved = l2o.save(self.root / "saved", optimizer, theta, format="pylo")
        for half in ("VeLO_RNN", "VeLO_MLP"):
            folder = self.folder(f"{owner}/{half}")
            folder.parent.mkdir(parents=True)
            (saved / half).rename(folder)

    def snapshot_download(
        self, name, *, revision=None, allow_patterns=None, local_files_only=False
    ):
        self.calls.append((name, revision, local_files_only))
        assert not [x for x in allow_patterns if re.search(r"[*?]|py|pkl|pt|bin", x)]
        folder = self.folder(name, revision)
        if not folder.is_dir():
            raise OSError("no network" if not local_files_only else "not cached")
        return str(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.chdir(tmp_path)  # a folder of the same name would be taken
    return fake


@pytest.mark.parametrize("source", IMPORTABLE)
def test_cached_repository_loads_without_a_download(hub, source):
    factory, arguments = IMPORTABLE[source]
    optimizer = l2o.make(factory, **arguments)
    theta = some_theta(optimizer)
    fetched = [source]
    if source.startswith("amoudgl/"):
        write_flax(hub.folder(source) / "theta.state", to_tree(theta, optimizer))
    elif source == "Pauljanson002/VeLO_RNN":
        hub.add_velo("Pauljanson002", optimizer, theta)
        fetched.append("Pauljanson002/VeLO_MLP")
    else:
        l2o.save(hub.folder(source), optimizer, theta, format="pylo")
    assert_same(l2o.load_unbound(source), optimizer, theta)
    assert hub.calls == [(name, None, True) for name in fetched]


def test_other_half_of_velo_asks_for_this_one(hub):
    theta = some_theta(PYLO_VELO)
    hub.add_velo("me", PYLO_VELO, theta)
    assert_same(l2o.load_unbound("me/VeLO_MLP", download=True), PYLO_VELO, theta)
    assert hub.calls == [("me/VeLO_MLP", None, False), ("me/VeLO_RNN", None, False)]


def test_other_networks_have_no_other_half(hub):
    theta = some_theta(PYLO["elo"])
    l2o.save(hub.folder("me/elo-MLP"), PYLO["elo"], theta, format="pylo")
    assert_same(l2o.load_unbound("me/elo-MLP"), PYLO["elo"], theta)
    assert hub.calls == [("me/elo-MLP", None, True)]


def test_revision_keeps_the_arguments(hub):
    optimizer = l2o.velo(lstm_hidden_size=64, param_inits=32, ff_mult=1.0)
    theta = some_theta(optimizer)
    folder = hub.folder("amoudgl/velo-s", "v1.0")
    write_flax(folder / "theta.state", to_tree(theta, optimizer))
    assert_same(l2o.load_unbound("amoudgl/velo-s@v1.0"), optimizer, theta)
    loaded, _ = l2o.load_unbound("amoudgl/velo-s@v1.0", exp_mult=0.5)
    assert (loaded.arguments["exp_mult"], loaded.arguments["ff_mult"]) == (0.5, 1.0)
    loaded, _ = l2o.load_unbound("amoudgl/velo-s@v1.0", ff_mult=2.0)
    assert loaded.arguments["ff_mult"] == 2.0
    assert hub.calls == 3 * [("amoudgl/velo-s", "v1.0", True)]


def test_what_is_not_cached_names_the_download(hub):
    message = r"'amoudgl/celo' is neither a folder nor in the local cache .*download=Tr"
    for load in (l2o.load, l2o.load_unbound):
        with pytest.raises(FileNotFoundError, match=message):
            load("amoudgl/celo")
    assert hub.calls == 2 * [("amoudgl/celo", None, True)]


@pytest.mark.parametrize(
    "line",
    [
        "evaluate --optimizers adam me/own:0.1",
        "diagnose me/own",
        "meta-train --out x --optimizer mlp --start-from me/own",
    ],
)
def test_a_command_fetches_only_where_it_is_told(line, hub, capsys):
    assert main(line.split()) == 2
    assert "--download" in capsys.readouterr().err
    assert {local for *_, local in hub.calls} == {True}
    hub.calls.clear()
    assert main([*line.split(), "--download"]) == 2
    told = capsys.readouterr().err
    assert "'me/own' could not be fetched from the model hub (no network)" in told
    assert hub.calls == [("me/own", None, False)]


def test_download_without_a_network_says_so(hub):
    with pytest.raises(FileNotFoundError, match=r"'a/b@c' could not be fetched .*no n"):
        l2o.load("a/b@c", download=True)
    assert hub.calls == [("a/b", "c", False)]


def test_without_the_library_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    message = r"'amoudgl/celo' is not a folder.*: `pip install l2o\[hub\]`"
    with pytest.raises(ModuleNotFoundError, match=message):
        l2o.load("amoudgl/celo")


def test_paths_are_not_taken_for_repositories(hub, tmp_path):
    theta = some_theta(SMALL["celo"])
    write_flax(Path("amoudgl/mine/theta.state"), to_tree(theta, SMALL["celo"]))
    assert_same(l2o.load_unbound("amoudgl/mine"), SMALL["celo"], theta)
    save_pylo(Path("me"), PYLO_VELO)
    Path("me/VeLO_MLP").rename("me/other")
    with pytest.raises(ValueError, match=r"is one half of PyLO's VeLO; expected the"):
        l2o.load("me/VeLO_RNN")
    for source in (tmp_path / "a" / "b", "/a/b", "a/b/c", Path("a/b"), "./a/b"):
        with pytest.raises(FileNotFoundError, match=r"is neither a file nor a folder"):
            l2o.load(source)
    assert {name for name, *_ in hub.calls} == {"amoudgl/mine", "me/VeLO_RNN"}
    assert all(local for *_, local in hub.calls)


@pytest.mark.parametrize("source", ["amoudgl/celo", "amoudgl/celo@v1", "me/cached"])
def test_paths_that_are_repositories_too_are_refused(hub, source):
    """One that l2o lists, or one in the cache; both spellings are named."""
    theta = some_theta(SMALL["celo"])
    for folder in (Path(source), hub.folder("me/cached"), Path("me/own")):
        write_flax(folder / "theta.state", to_tree(theta, SMALL["celo"]))
    message = rf"write \./{source} for the path, or [\w/]+@REVISION, such as @main, for"
    for read in (l2o.load_unbound, l2o.read_card):
        with pytest.raises(ValueError, match=message):
            read(source)
    assert_same(l2o.load_unbound(f"./{source}"), SMALL["celo"], theta)
    assert_same(l2o.load_unbound("me/own"), SMALL["celo"], theta)
    with pytest.raises(ValueError, match=r"write \./me/own for the path"):
        l2o.load_unbound("me/own", download=True)
