"""The Python snippets of the README and the docs run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
ONE_SCRIPT = ("training_loop",)  # pages whose snippets go on from each other


def snippets(page):
    found = FENCE.findall(page.read_text())
    if page.stem in ONE_SCRIPT:
        return ["\n".join(found)]
    # The others are fragments.
    return [code for code in found if code.lstrip().startswith(("import", "from"))]


SNIPPETS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(snippets(page))
]


def test_every_tutorial_has_a_snippet():
    for page in PAGES:
        if page.parent.name == "tutorials":
            assert len(snippets(page)) == 1, page


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet(code, tmp_path):
    # As a stranger's script: a fresh process, in a folder of its own.
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    if done.stdout.startswith("loss"):
        assert float(done.stdout.split()[-1]) < 0.1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target
