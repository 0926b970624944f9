"""The examples run, and what they train learns."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, steps, reached",
    [
        ("gpt_flax", 60, lambda loss: loss < 3.5),  # log 128 is 4.9
        ("images_flax", 60, lambda accuracy: accuracy > 0.85),
        ("recurrent_haiku", 150, lambda loss: loss < 0.5),  # log 2 is 0.69
    ],
)
def test_an_example(name, steps, reached, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, "--steps", str(steps)])
    assert reached(module.main())


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    (mark,) = (m for m in test_an_example.pytestmark if m.name == "parametrize")
    assert names == {values[0] for values in mark.args[1]}
