"""Orthogonalisation against singular values, and on a mesh."""

import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cpu_devices, normal, python_path
from scipy.special import ellipj, ellipkm1

from l2o.rule import _orthogonal
from l2o.rule._inverse import inverse
from l2o.rule._newton_schulz import NS_COEFFS, newton_schulz
from l2o.rule._orthogonal import orthogonalise, rational_polar


def zolotarev(least, terms):
    """Shifts, weights and scale of his function, from elliptic functions."""
    quarter = ellipkm1(least**2)
    steps = np.arange(1, 2 * terms + 1) / (2 * terms + 1)
    sn, cn, _, _ = ellipj(steps * quarter, 1 - least**2)
    every = least**2 * (sn / cn) ** 2
    poles, zeros = every[0::2], every[1::2]
    weights = [
        np.prod(zeros - pole) / np.prod([x - pole for x in poles if x != pole])
        for pole in poles
    ]
    x = np.geomspace(least, 1, 20_001)
    values = x * np.prod([(x**2 + z) / (x**2 + p) for z, p in zip(zeros, poles)], 0)
    return poles, weights, 2 / (values.max() + values.min())


def slow_polar(x):
    """By singular values, in float64, with the function as a product."""
    u, s, v = np.linalg.svd(np.float64(x), full_matrices=False)
    poles, weights, scale = zolotarev(_orthogonal.LEAST, len(_orthogonal.SHIFTS))
    t = s / np.sum(s**4, -1, keepdims=True) ** 0.25
    terms = sum(w / (t**2 + p) for w, p in zip(weights, poles, strict=True))
    return (u * (scale * t * (1 + terms))[..., None, :]) @ v


def test_the_numbers_are_those_of_elliptic_functions():
    poles, weights, scale = zolotarev(_orthogonal.LEAST, len(_orthogonal.SHIFTS))
    np.testing.assert_allclose(_orthogonal.SHIFTS, poles, rtol=1e-6)
    np.testing.assert_allclose(_orthogonal.WEIGHTS, weights, rtol=1e-6)
    np.testing.assert_allclose(_orthogonal.SCALE, scale, rtol=1e-6)


# One block, blocks with a rest, halves; stacks.
@pytest.mark.parametrize("shape", [(3, 5), (130, 200), (576, 576), (2, 3, 7, 9)])
def test_a_rational_function_of_singular_values(shape):
    x = normal(0, {"x": shape})["x"]
    expected = slow_polar(x)
    found = jax.jit(rational_polar)(x)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.max(np.abs(expected)))


def test_an_inverse():
    x = normal(0, {"x": (2, 600, 640)})["x"]
    gram = np.float64(x) @ np.swapaxes(x, -1, -2) / 640 + 1e-3 * np.eye(600)
    expected = np.linalg.inv(gram)
    found = jax.jit(inverse)(jnp.float32(gram))
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.max(expected))


def test_derivatives_are_those_of_differences():
    x, way = (jnp.asarray(normal(i, {"x": (3, 4)})["x"]) for i in range(2))
    with jax.enable_x64(True):
        x, way = x.astype(float), way.astype(float)
        slope = jax.jvp(rational_polar, (x,), (way,))[1]
        step = 1e-6 * way
        differences = rational_polar(x + step) - rational_polar(x - step)
        np.testing.assert_allclose(slope, differences / 2e-6, rtol=1e-5, atol=1e-7)
        back = jax.vjp(rational_polar, x)[1](way)[0]
        np.testing.assert_allclose(jnp.vdot(back, way), jnp.vdot(way, slope), rtol=1e-9)


def test_matrices_one_after_the_other_have_the_derivatives_of_each():
    xs, ways = (normal(i, {"a": (80, 96), "b": (80, 96)}) for i in range(2))

    def along(f, xs, ways):
        return jax.vjp(f, list(xs.values()))[1](list(ways.values()))[0]

    found = along(jax.jit(lambda xs: orthogonalise(xs, "rational")), xs, ways)
    each = along(jax.jit(lambda xs: [rational_polar(x) for x in xs]), xs, ways)
    for x, y in zip(found, each, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * np.max(np.abs(y)))


def test_zeros_stay_and_have_derivatives():
    zero = jnp.zeros((2, 3))
    assert not np.any(rational_polar(zero))
    for derivative in (jax.jacfwd, jax.jacrev):
        assert np.all(np.isfinite(derivative(rational_polar)(zero)))


WAYS = {
    "rational": slow_polar,
    "newton_schulz": lambda x: newton_schulz(x, NS_COEFFS, 5, 1e-8),
    "newton_schulz_bf16": lambda x: newton_schulz(x, NS_COEFFS, 5, 1e-8, "bfloat16"),
}


@pytest.mark.parametrize("way", WAYS)
def test_tensors_together_are_as_each_alone(way):
    shapes = {"a": (3, 5), "b": (5, 3), "c": (2, 2, 5, 3), "d": (4, 4), "e": (1, 7)}
    xs = normal(1, {**shapes, "f": (80, 96), "g": (96, 80)})
    together = jax.jit(lambda xs: orthogonalise(list(xs.values()), way))(xs)
    for found, (name, x) in zip(together, xs.items(), strict=True):
        # In bfloat16 a product of another shape may be rounded another way.
        atol = 0.1 if way == "newton_schulz_bf16" else 1e-3
        np.testing.assert_allclose(found, WAYS[way](x), atol=atol, err_msg=name)


def test_bfloat16_is_near_float32():
    x = normal(0, {"x": (64, 96)})["x"]
    found, expected = (
        newton_schulz(x, NS_COEFFS, 5, 1e-8, p) for p in ("bfloat16", "float32")
    )
    assert found.dtype == jnp.float32
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 0.1


def test_the_platform_decides():
    traced = jax.jit(lambda x: orthogonalise([x], "by_platform")).trace(
        jnp.ones((8, 8))
    )
    texts = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert "while" in texts["cpu"] and "bf16" not in texts["cpu"]
    for platform in ("tpu", "cuda"):
        assert "bf16" in texts[platform] and "while" not in texts[platform]


def test_as_many_tensors_of_a_shape_as_there_are_make_one_program():
    def length(count):
        xs = [jnp.ones((96, 96))] * count
        text = jax.jit(lambda xs: orthogonalise(xs, "rational")).lower(xs).as_text()
        return text.count("dot_general")

    assert length(2) == length(12)


def test_a_mesh_shares_the_matrices():
    done = subprocess.run(
        [sys.executable, __file__],
        env={**cpu_devices(8), "PYTHONPATH": python_path()},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind, each in found.items():
        # Sixteen matrices on eight devices: two each, and not all of them anywhere.
        assert each["products"] == [2], kind
        assert each["error"] < 1e-3, kind
        assert each["kept"], kind


def _on_a_mesh():
    found = {}
    for kind in ("Auto", "Explicit"):
        axis_types = (jax.sharding.AxisType[kind],)
        mesh = jax.make_mesh((8,), ("d",), axis_types=axis_types)
        with jax.set_mesh(mesh):
            sharding = jax.NamedSharding(mesh, jax.P("d"))
            x = jnp.asarray(normal(0, {"x": (96, 128)})["x"])
            xs = [jax.device_put(x * (i + 1), sharding) for i in range(16)]
            f = jax.jit(lambda xs: orthogonalise(xs, "newton_schulz"))
            compiled = f.lower(xs).compile()
            stacks = re.findall(r"= f32\[(\d+),96,96\]\S* dot\(", compiled.as_text())
            out = compiled(xs)
            expected = newton_schulz(x, NS_COEFFS, 5, 1e-8)
            found[kind] = {
                "products": sorted(set(map(int, stacks))),
                "error": float(max(np.max(np.abs(y - expected)) for y in out)),
                "kept": kind == "Auto"
                or all(y.sharding.is_equivalent_to(sharding, 2) for y in out),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    _on_a_mesh()
