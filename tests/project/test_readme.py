"""The Python snippets of the README and the docs run as they stand."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import same_but_for_numbers, script

from l2o.files._hub import IMPORTABLE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
TEXT = re.compile(r"^```text\n(.*?)^```", re.S | re.M)
# Pages whose snippets go on from each other.
ONE_SCRIPT = (
    "training_loop",
    "tutorials/train_a_model",
    "tutorials/own_optimizer",
    "how_to/axes",
    "how_to/without_a_horizon",
)
NEEDS = {"how_to/equinox": "equinox"}  # what is not in l2o[train]


def name_of(page):
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).with_suffix("")


def snippets(page):
    found = FENCE.findall(page.read_text())
    if str(name_of(page)) in ONE_SCRIPT:
        return ["\n".join(found)]
    # The others are fragments.
    return [code for code in found if code.lstrip().startswith(("import", "from"))]


SNIPPETS = {
    f"{name_of(page)}-{i}": code
    for page in PAGES
    for i, code in enumerate(snippets(page))
}
ALONE = ["tutorials/train_a_model-0"]
TOGETHER = [name for name in SNIPPETS if name not in ALONE]
# name -> what its page says that it prints.
PRINTED = {
    f"{name_of(page)}-0": "".join(TEXT.findall(page.read_text()))
    for page in PAGES
    if page.parent.name in ("tutorials", "how_to") and snippets(page)
}
PRINTED = {name: text for name, text in PRINTED.items() if text}


def need(name):
    package = NEEDS.get(name.rpartition("-")[0])
    if package and importlib.util.find_spec(package) is None:
        return package
    return None


def skip_without_what_it_needs(name):
    if package := need(name):
        pytest.skip(f"no {package}: pip install -c constraints.txt {package}")


def test_every_tutorial_has_a_snippet():
    for page in PAGES:
        if page.parent.name == "tutorials":
            assert len(snippets(page)) == 1, page


def test_every_how_to_says_what_its_script_prints():
    pages = sorted((DOCS / "how_to").glob("*.md"))
    scripts = {f"{name_of(page)}-0" for page in pages if snippets(page)}
    assert scripts <= PRINTED.keys()
    frameworks = {"flax_nnx", "flax_linen", "haiku", "equinox"}
    assert {f"how_to/{name}-0" for name in frameworks} <= scripts


@pytest.mark.parametrize("name", ALONE)
def test_snippet(name, tmp_path):
    # As a stranger's script: a fresh process, in a folder of its own.
    (tmp_path / "script.py").write_text(SNIPPETS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss")
    same_but_for_numbers(done.stdout, PRINTED[name], rtol=0.3, atol=0.03)


# Each as a script in a folder of its own.
RUN_ALL = """
import contextlib, io, json, os, runpy, sys, traceback
home, results = os.getcwd(), {}
for name in sys.argv[1:]:
    os.chdir(name)
    printed, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path("script.py", run_name="__main__")
    except BaseException:
        error = traceback.format_exc()
    results[name] = {"printed": printed.getvalue(), "error": error}
    os.chdir(home)
with open("results.json", "w") as file:
    json.dump(results, file)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """name -> output and traceback, of the pages' snippets, all in one process.

    Importing and compiling the same again would be most of what they take.
    """
    folder = tmp_path_factory.mktemp("snippets")
    names = [name for name in TOGETHER if not need(name)]
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "script.py").write_text(SNIPPETS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_ALL, *names],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
        env={**os.environ, "L2O_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", TOGETHER)
def test_snippet_of_a_page(name, results):
    skip_without_what_it_needs(name)
    assert results[name]["error"] is None, results[name]["error"]


@pytest.mark.parametrize("name", [name for name in PRINTED if name not in ALONE])
def test_a_script_prints_what_its_page_says(name, results):
    skip_without_what_it_needs(name)
    same_but_for_numbers(results[name]["printed"], PRINTED[name], rtol=0.3, atol=0.03)


def test_the_page_of_published_weights_has_every_repository():
    text = (DOCS / "how_to" / "published_weights.md").read_text()
    table = "".join(re.findall(r"^\| `\w+/.*$", text, re.M))
    named = set(re.findall(r"`([\w-]+/[\w-]+)`", table))
    assert named == set(IMPORTABLE)


NOTEBOOKS = script("docs", "notebooks")


@pytest.mark.parametrize("name", NOTEBOOKS.PAGES)
def test_a_notebook_is_its_page(name):
    stored = json.loads((NOTEBOOKS.FOLDER / f"{Path(name).name}.ipynb").read_text())
    assert stored == NOTEBOOKS.notebook(name), "run python scripts/docs/notebooks.py"
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    page = SNIPPETS[f"{name}-0"]
    assert re.sub(r"\s+", " ", code).strip() == re.sub(r"\s+", " ", page).strip()
    printed = ["".join(o["text"]) for cell in cells for o in cell["outputs"]]
    assert "".join(printed) == PRINTED[f"{name}-0"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
