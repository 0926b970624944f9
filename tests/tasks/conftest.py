"""What several test files of tasks are given."""

import functools

import jax
import pytest
from classical_forms import Run

the_run = functools.cache(Run)


@pytest.fixture(scope="module")
def compiled_as_it_stands():
    # A zoo that is compiled once and runs for milliseconds.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def run(compiled_as_it_stands):
    return the_run()


@pytest.fixture(scope="module")
def runs(run):
    return run.many
