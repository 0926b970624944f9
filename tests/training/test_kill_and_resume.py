"""The script that kills runs, in short; by hand it makes twenty kills."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "checks" / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.exhaustive  # one kill, in test_run.py, is among the others
def test_two_kills(tmp_path):
    out = tmp_path / "out"
    options = ["--kills", "2", "--outer-steps", "800", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bit for bit after 2 kills" in done.stdout

    # It would have told: another metric, another state, something left over.
    spec = importlib.util.spec_from_file_location("kill_and_resume", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    whole, cut = out / "whole", out / "cut"
    assert script.differences(whole, cut, 800) == []
    metrics = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(metrics.replace('"step": 7,', '"step": 8,', 1))
    shutil.rmtree(cut / "checkpoints" / "800")
    shutil.copytree(whole / "checkpoints" / "700", cut / "checkpoints" / "800")
    (cut / "unreadable").mkdir()
    told = script.differences(whole, cut, 800)
    for name in ("state 0.step", "counter inner_steps", "metrics of outer step 7"):
        assert f"differs: {name}" in told
    assert f"left behind: {cut / 'unreadable'}" in told
