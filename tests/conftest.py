"""Shared settings: how programs are compiled, here and in what the tests start."""

import gc
import os
import sys
import tempfile

import jax
import pytest

# Compiling is most of what the suite takes, and takes less without optimized machine
# code and without the compiler's newer way to fuse loops; what is computed is the same
# but for rounding.
COMPILE_FAST = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


# Tracing makes millions of small objects, which the collector would go through again
# and again.
gc.set_threshold(200_000, 20, 100)


def pytest_configure(config):
    # Several tests start processes that compile the same programs.
    cache = os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "l2o-test-xla")
    )
    jax.config.update("jax_compilation_cache_dir", cache)
    given = os.environ.get("XLA_FLAGS", "")
    flags = [flag for flag in COMPILE_FAST if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()


@pytest.fixture(autouse=True)
def _away_from_the_checkout(tmp_path, monkeypatch):
    # In the checkout, `import l2o` in a child process would find the source folder.
    monkeypatch.chdir(tmp_path)
    # What this user's earlier runs have measured decides nothing here.
    monkeypatch.setenv("L2O_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _registrations_end_with_the_test():
    yield
    for module, name in (
        ("l2o._registry", "FACTORIES"),
        ("l2o.tasks._spec", "KINDS"),
        ("l2o.tasks.data._registry", "DATASETS"),
    ):
        if module in sys.modules:
            getattr(sys.modules[module], name)._registered.clear()
    if "l2o.tasks._registry" in sys.modules:
        sys.modules["l2o.tasks._registry"]._registered.clear()


@pytest.fixture
def state(tmp_path):
    """A path whose folder's name tells nothing."""
    return tmp_path / "w" / "theta.state"
