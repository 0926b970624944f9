"""The README's Python snippets run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(
    r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```", README, re.S | re.M
)


def test_there_are_five_snippets():
    assert len(SNIPPETS) == README.count("```python") == 5


@pytest.mark.parametrize("code", [pytest.param(c, id=t) for t, c in SNIPPETS])
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


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
