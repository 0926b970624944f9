"""The Python snippets of the README and the docs run as they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
ONE_SCRIPT = ("training_loop",)  # pages whose snippets go on from each other


def snippets(page):
    found = FENCE.findall(page.read_text())
    if page.stem in ONE_SCRIPT:
        return ["\n".join(found)]
    # The others are fragments.
    return [code for code in found if code.lstrip().startswith(("import", "from"))]


SNIPPETS = {
    f"{page.stem}-{i}": code for page in PAGES for i, code in enumerate(snippets(page))
}
ALONE = ["train_a_model-0"]
TOGETHER = [name for name in SNIPPETS if name not in ALONE]


def test_every_tutorial_has_a_snippet():
    for page in PAGES:
        if page.parent.name == "tutorials":
            assert len(snippets(page)) == 1, page


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
    assert float(done.stdout.split()[-1]) < 0.1


# Each as a script in a folder of its own.
RUN_ALL = """
import json, os, runpy, sys, traceback
errors = {}
for name in sys.argv[1:]:
    os.chdir(name)
    try:
        runpy.run_path("script.py", run_name="__main__")
    except BaseException:
        errors[name] = traceback.format_exc()
    os.chdir("..")
with open("errors.json", "w") as file:
    json.dump(errors, file)
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """name -> traceback, of the snippets of the pages, all in one process.

    Importing and compiling the same again would be most of what they take.
    """
    folder = tmp_path_factory.mktemp("snippets")
    for name in TOGETHER:
        (folder / name).mkdir()
        (folder / name / "script.py").write_text(SNIPPETS[name])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_ALL, *TOGETHER],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "L2O_CACHE": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "errors.json").read_text())


@pytest.mark.parametrize("name", TOGETHER)
def test_snippet_of_a_page(name, errors):
    assert name not in errors, errors[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
