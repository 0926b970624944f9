"""Which kernels are chosen: by scope, environment, mesh, and what was built."""

import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from kernel_operands import MISSING, needs_kernels

import l2o
from l2o.kernels import _backend, _library

DEFAULT = "native" if MISSING is None else "xla"


@pytest.fixture
def forgotten():
    """Kernels are looked for anew, and so they are afterwards."""

    def forget():
        for found in (_library._load, _library.unavailable, _backend.why_no_native):
            found.cache_clear()

    forget()
    yield
    forget()


def test_unknown_backend(monkeypatch):
    known = "known: native, pallas, xla"
    with pytest.raises(ValueError, match=f"unknown backend 'nonsense'; {known}"):
        l2o.backend("nonsense")
    monkeypatch.setenv("L2O_BACKEND", "nonsense")
    with pytest.raises(ValueError, match=f"unknown L2O_BACKEND 'nonsense'; {known}"):
        l2o.chosen_backend()


def test_backend_is_of_the_scope_then_of_the_environment(monkeypatch):
    assert l2o.chosen_backend() == DEFAULT
    with l2o.backend("pallas"):
        assert l2o.chosen_backend() == "pallas"
        with l2o.backend("xla"):
            assert l2o.chosen_backend() == "xla"
            with l2o.backend(None):
                assert l2o.chosen_backend() == DEFAULT
        assert l2o.chosen_backend() == "pallas"
    monkeypatch.setenv("L2O_BACKEND", "xla")
    assert l2o.chosen_backend() == "xla"
    with l2o.backend("pallas"):
        assert l2o.chosen_backend() == "pallas"


@pytest.mark.parametrize(
    ("sizes", "kinds", "whole"),
    [
        ((1, 1), "AE", True),
        ((2, 2), "MM", True),
        ((2, 1), "MA", True),
        ((2, 2), "MA", False),
        ((2, 1), "AM", False),
        ((2,), "E", False),
    ],
)
def test_kernels_see_whole_tensors_only(sizes, kinds, whole):
    letters = {"A": AxisType.Auto, "E": AxisType.Explicit, "M": AxisType.Manual}
    types = tuple(letters[kind] for kind in kinds)
    mesh = AbstractMesh(sizes, ("a", "b")[: len(sizes)], axis_types=types)
    with jax.sharding.use_abstract_mesh(mesh):
        assert l2o.chosen_backend() == (DEFAULT if whole else "xla")
        with l2o.backend("pallas"):
            assert l2o.chosen_backend() == ("pallas" if whole else "xla")


def test_what_is_compiled_is_kept_per_backend():
    traced = []

    @jax.jit
    def f(x):
        traced.append(l2o.chosen_backend())
        return x

    for name in ("xla", "pallas", "xla", None, "pallas", None):
        with l2o.backend(name):
            f(1.0)
    assert traced == ["xla", "pallas", DEFAULT]


@pytest.mark.parametrize("there", [False, True], ids=["missing", "broken"])
def test_without_kernels_plain_jax_is_used(forgotten, there, monkeypatch, tmp_path):
    path = tmp_path / "generic.so"
    if there:
        path.write_bytes(b"no library")
    monkeypatch.setattr(_library, "_path", lambda name: path)
    reason = _library.unavailable()
    assert ("generic.so" if there else "for want of a C++ compiler") in reason
    assert l2o.chosen_backend() == "xla"
    assert l2o.native_kernels() is None
    with pytest.raises(ValueError, match="no native kernels: ") as error:
        l2o.backend("native")
    assert reason in str(error.value)


@needs_kernels
def test_without_registration_plain_jax_is_used(forgotten, monkeypatch):
    def refused(*_, **__):
        raise TypeError("no such platform")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refused)
    assert l2o.chosen_backend() == "xla"
    reason = "no native kernels: the installed jaxlib refuses them: no such platform"
    with pytest.raises(ValueError, match=reason):
        l2o.backend("native")


HIDDEN = """
import sys
sys.modules["{module}"] = None  # as if this JAX did not have it
import jax, jax.numpy as jnp, l2o
tx = l2o.load("small_fc_mixed", num_steps=10)
params = jnp.ones((3, 2))
updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
assert jnp.all(jnp.isfinite(updates)) and l2o.chosen_backend() == "xla"
try:
    l2o.backend("{backend}")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("backend", "module"),
    [
        pytest.param("native", "jax.extend.core", marks=needs_kernels),
        ("pallas", "jax.experimental.pallas"),
    ],
)
def test_kernels_need_more_of_jax_than_the_rest(backend, module):
    code = HIDDEN.format(backend=backend, module=module)
    if backend == "pallas":
        code = code.replace('== "xla"', '!= "pallas"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = f"no {backend} kernels: this JAX lacks what they need (ModuleNotFoundError"
    assert done.stdout.startswith(said)


@needs_kernels
def test_unknown_instructions(forgotten, monkeypatch):
    monkeypatch.setenv("L2O_INSTRUCTIONS", "sse9")
    known = "known: generic, avx2, avx512"
    with pytest.raises(ValueError, match=f"unknown L2O_INSTRUCTIONS 'sse9'; {known}"):
        l2o.backend("native")
    assert l2o.chosen_backend() == "xla"


@needs_kernels
def test_kernels_are_the_best_that_were_built(forgotten, monkeypatch, tmp_path):
    built = _library._path

    def path(name):
        return built(name) if name == "generic" else tmp_path / "none"

    # What is in use in this process stays.
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)
    monkeypatch.setattr(_library, "_path", path)
    assert _library.instructions() == l2o.native_kernels() == "generic"
