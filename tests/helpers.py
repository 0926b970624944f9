"""What several test files share."""

import importlib
import math
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from l2o import tasks, without_skipping

TESTS = os.path.dirname(__file__)
KEY = jax.random.key(0)


KEYS = jax.random.split(jax.random.key(1), 2000)


# A sound implementation fails a check at four standard errors once in 16 000.
ERRORS = 4


def few(names, keep):
    """Parameters of which only some are under test every time; all are in `test-all`.

    Args:
      names: of the parameters, their ids.
      keep: those whose parts are not all tested elsewhere.
    """
    assert set(keep) <= set(names)
    marks = {name: [] if name in keep else [pytest.mark.exhaustive] for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


def assert_log_uniform(values, low, high):
    logs = np.log(np.asarray(values, np.float64)).ravel()
    width = math.log(high / low)
    assert logs.min() >= math.log(low) - 1e-5
    assert logs.max() <= math.log(high) + 1e-5
    error = width / math.sqrt(12 * logs.size)
    assert abs(logs.mean() - math.log(low * high) / 2) < ERRORS * error
    assert scipy.stats.kstest((logs - math.log(low)) / width, "uniform").pvalue > 1e-4


def assert_uniform_integers(values, count):
    values = np.asarray(values)
    error = math.sqrt((1 / count) * (1 - 1 / count) / values.size)
    shares = np.bincount(values, minlength=count) / values.size
    assert shares.shape == (count,)
    assert np.all(abs(shares - 1 / count) < ERRORS * error)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol),
        actual,
        expected,
    )


def mapped(f, in_axes=0):
    return jax.jit(jax.vmap(f, in_axes))


def differ(a, b):
    return any(
        np.any(np.asarray(x) != np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


RNG = np.random.default_rng(7)


LABELS = {"y": np.arange(100, dtype=np.int32) % 10}


DARK = tasks.from_arrays({"x": RNG.uniform(0, 1, (100, 2, 2, 1)), **LABELS})


def normal(seed, shapes):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


def momenta(state):
    """Of `mlp`, or of an optimizer with `Accumulators`."""
    return state.momentum if hasattr(state, "momentum") else state.accumulators.momentum


def cpu_devices(count):
    """Environment of a process with so many: the number is set before jax starts."""
    flag = f"--xla_force_host_platform_device_count={count}"
    return {**os.environ, "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"}


def never_skipping(optimizer):
    """The optimizer, whose updates see what is not finite."""

    def bind(theta, *, num_steps=None):
        return without_skipping(optimizer.bind(theta, num_steps=num_steps))

    return optimizer._replace(bind=bind)


def script(folder, name):
    """A module of scripts/, which finds those beside it."""
    path = os.path.join(os.path.dirname(TESTS), "scripts", folder)
    if path not in sys.path:
        sys.path.append(path)
    return importlib.import_module(name)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def without_numbers(text):
    """Its lines, with a sign for every number."""
    lines = NUMBER.sub("#", text).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def same_but_for_numbers(printed, expected, *, rtol, atol):
    """Asserts that two texts are the same, and their numbers about the same."""
    assert without_numbers(printed) == without_numbers(expected)
    numbers = [[float(x) for x in NUMBER.findall(t)] for t in (printed, expected)]
    np.testing.assert_allclose(*numbers, rtol=rtol, atol=atol)


def python_path(*folders):
    """`PYTHONPATH` of a process that imports from tests/ and from these folders."""
    paths = [*map(str, folders), TESTS, os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


def read_arrays(path):
    """name -> array, of an npz file that is closed again."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
