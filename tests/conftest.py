"""Shared settings: one compilation cache for the run, and for what it starts."""

import os
import tempfile

import jax
import pytest


def pytest_configure(config):
    # Several tests start processes that compile the same programs.
    cache = os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "l2o-test-xla")
    )
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.fixture(autouse=True)
def _away_from_the_checkout(tmp_path, monkeypatch):
    # In the checkout, `import l2o` in a child process would find the source folder.
    monkeypatch.chdir(tmp_path)
    # What this user's earlier runs have measured decides nothing here.
    monkeypatch.setenv("L2O_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def state(tmp_path):
    """A path whose folder's name tells nothing."""
    return tmp_path / "w" / "theta.state"
