"""What is installed is what is in the tree, under one name."""

import platform
import shutil
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import l2o

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _folders():
    """Folders of packages on disk, with the packages' names."""
    found = {}
    for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found[init.parent] = ".".join([name, *inside])
    return found


def test_every_package_on_disk_is_listed():
    assert set(_folders().values()) == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_data_file_on_disk_is_listed():
    """What is no Python file and lies in a package; sources of kernels stay behind."""
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {name: folder for folder, name in _folders().items()}
    listed = {
        file
        for name, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for file in folders[name].glob(pattern)
    }
    found = {
        file
        for folder in setuptools["package-dir"].values()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc", ".so")
    }
    left = {x for x in found - listed if x.name != "README.md"}
    assert {x for x in left if "cpp" not in x.parts} == set()
    assert ROOT / "meta_train/evaluation/page.css" in listed


def test_the_tests_see_an_installed_package():
    assert metadata.version("l2o") == PROJECT["project"]["version"]
    assert (Path(l2o.__file__).parent / "py.typed").exists()


def test_the_wheel_has_one_top_level_package():
    wheels = list((ROOT / ".venv" / "dist").glob("l2o-*.whl"))
    if not wheels:
        pytest.skip("no wheel: run the tests with `make test`")
    # Built from this tree, and what the tests import.
    assert ".venv" in l2o.__file__
    names = zipfile.ZipFile(wheels[0]).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"l2o"}
    for name in (
        "l2o/py.typed",
        "l2o/tasks/__init__.py",
        "l2o/meta_train/estimators/_es.py",
        "l2o/meta_train/evaluation/page.css",
        "l2o/meta_train/evaluation/page.js",
    ):
        assert name in names
    if shutil.which("c++") and platform.machine() in ("x86_64", "AMD64"):
        for name in ("generic", "avx2", "avx512"):
            assert f"l2o/kernels/cpp/{name}.so" in names
        assert l2o.native_kernels() is not None
    for shipped in l2o.shipped():
        assert f"l2o/checkpoints/{shipped}/model.safetensors" in names


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["train"], *extras["dev"]]
    for requirement in wanted:
        assert requirement.split(">=")[0].lower() in pinned, requirement


def test_what_models_import_comes_with_training():
    wanted = " ".join(PROJECT["project"]["optional-dependencies"]["train"])
    assert "flax" in wanted and "dm-haiku" in wanted
