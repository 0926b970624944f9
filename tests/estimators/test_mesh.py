"""One program on eight virtual devices: what it computes and what it communicates."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import cpu_devices

from l2o.meta_train import Topology, make_mesh

FEW = ("pes", "full_es", "truncated_backprop")
MORE = (
    "forward_gradient",
    "nres",
    "gpes",
    "truncated_es",
    "unperturbed",
    "backprop",
    "inverse_variance",
    "average",
)
ESTIMATORS = [
    *FEW,
    *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE),
]


def _report(names):
    script = pathlib.Path(__file__).with_name("on_mesh.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script, ",".join(names)],
        env=cpu_devices(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def few():
    return _report([*FEW, "batch", "theta", "elastic"])


@pytest.fixture(scope="module")
def more():
    return _report(MORE)


@pytest.fixture
def report(request):
    """`name -> what the other process found`."""
    return lambda name: request.getfixturevalue("more" if name in MORE else "few")[name]


def _assert_same(a, b, rtol=2e-4):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("name", [*ESTIMATORS, "batch", "theta"])
def test_eight_devices_compute_what_one_does(report, name):
    _assert_same(report(name)["one"], report(name)["many"])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_outer_step_has_one_round_of_reductions(report, name):
    found = report(name)["collectives"]
    # Nothing but sums, none of them in an inner step, none larger than theta's leaves.
    assert {operation for operation, _, _ in found} == {"all-reduce"}
    # The variances of the combination need its means; two estimators are two.
    rounds = {"inverse_variance": 8, "average": 2}.get(name, 1)
    assert 1 <= len(found) <= rounds
    assert max(size for _, size, _ in found) <= report(name)["theta_size"]
    if name != "average":  # whose draws are a loop
        assert not any(inside for *_, inside in found)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_workers_are_spread_over_the_devices(report, name):
    if name in ("full_es", "backprop"):
        assert report(name)["shards"] == []  # nothing is kept
    else:
        assert report(name)["shards"]
        assert all("particles" in spec for spec in report(name)["shards"])
    assert not report(name)["theta_sharded"]


def test_batches_are_shared_by_a_group_of_devices(report):
    # Each inner step sums the gradients of the halves of its batch.
    found = report("batch")["collectives"]
    assert any(inside for *_, inside in found)
    assert "all-gather" not in {operation for operation, *_ in found}


def test_theta_can_be_sharded(report):
    assert report("theta")["theta_sharded"]


def test_a_state_moves_to_fewer_devices(report):
    ends = report("elastic")
    for count in ("4", "1"):
        _assert_same(ends[count], ends["8"])


def test_sizes_that_do_not_fit():
    assert make_mesh(Topology(), 8) is None  # one device here
    devices = [jax.devices()[0]] * 6
    with pytest.raises(ValueError, match="8 particles cannot be shared by 6 devices"):
        make_mesh(Topology(), 8, devices=devices)
    with pytest.raises(ValueError, match=r"6 devices .* batch_devices=4"):
        make_mesh(Topology(batch_devices=4), 8, devices=devices)
    with pytest.raises(ValueError, match="must be >= 1"):
        Topology(batch_devices=0)
    with pytest.raises(ValueError, match="go together"):
        Topology(distributed=True, processes=2)
    with pytest.raises(ValueError, match="add distributed"):
        Topology(coordinator="localhost:1", processes=2, process=0)
