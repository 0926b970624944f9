"""The examples run, print what their docstrings say, and what they train learns."""

import importlib.util
import sys
from pathlib import Path

import pytest
from helpers import without_numbers

EXAMPLES = Path(__file__).parents[2] / "examples"
# Fewer steps than a user makes.
CASES = {
    "fine_tuning": (
        ("--steps", "60", "--how", "all, body at a tenth"),
        # From eight starts: 0.80 to 0.86. Rounding moves one by 0.03.
        lambda reached: min(reached.values()) > 0.75,
    ),
    "gpt_flax": (
        ("--steps", "60"),
        lambda reached: reached["adaptive_muon"] < reached["adamw"] < 4,  # log 128: 4.9
    ),
    "images_flax": (
        ("--steps", "60"),
        lambda reached: min(reached.values()) > 0.85,
    ),
    "meta_train": (
        ("--outer-steps", "10", "--steps", "40"),
        lambda reached: max(reached.values()) < 1,  # log 10: 2.3
    ),
    "recurrent_haiku": (
        ("--steps", "150"),
        lambda reached: max(reached.values()) < 0.5,  # log 2: 0.69
    ),
    "resume": (
        ("--steps", "30", "--every", "10", "--kill-at", "25"),
        lambda reached: reached["died"] and reached["same"] and reached["adamw"] < 2,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_example(name, monkeypatch, capfd):
    arguments, learns = CASES[name]
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    reached = module.main()
    assert learns(reached), reached
    printed, told = capfd.readouterr().out, without_numbers(module.__doc__)
    assert printed
    for line in without_numbers(printed):
        assert line in told


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CASES)
