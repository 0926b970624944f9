"""The published weights, where there are copies of them: anchors and traces."""

import jax
import numpy as np
import pytest
from helpers import script
from weight_files import PUBLISHED_SIZES, REFERENCE

import l2o

# The published weights, where there are copies of them.

ANCHORS = {
    "celo": {
        "bank/b0": 0.32953537,
        "bank/w0": (0, 0.31238586),
        "bank/w1": 0.5176754,
        "step_size/b": 0.29133046,
        "lstm_init/hidden": 0.17633149,
    },
    "celo_adam": {
        "step_size/b": 0.09563626,
        "lstm_init/cell": 0.10146724,
        "lstm/w": 0.11209141,
    },
}
TRACES = {"celo": "celo_phase2_pretrained", "celo_adam": "celo_adam_pretrained"}


def _reference(*parts):
    path = REFERENCE.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{parts[-1]} of published weights is not there: {path}")
    return path


@pytest.mark.parametrize("name", ANCHORS)
def test_published_weights_have_their_anchors(name):
    path = _reference("weights", name, "theta.state")
    optimizer, theta = l2o.load_unbound(path)
    assert (optimizer.name, optimizer.arguments) == (name, l2o.make(name).arguments)
    size = sum(x.size for x in jax.tree.leaves(theta))
    assert size == PUBLISHED_SIZES[name][0]
    for key, anchor in ANCHORS[name].items():
        part, leaf = key.split("/")
        x = theta[part][leaf]
        if isinstance(anchor, tuple):  # a row of groups that are one array here
            row, anchor = anchor
            x = x[:, row]
        np.testing.assert_allclose(np.mean(np.abs(x)), anchor, rtol=2e-6)


@pytest.mark.parametrize("name", TRACES)
def test_published_weights_follow_the_trace(name, monkeypatch):
    """The optimizer and theta are those of the file, not of the trace."""
    path = _reference("weights", name, "theta.state")
    trace = _reference("traces", "jax", f"{TRACES[name]}.npz")
    check_traces = script("checks", "check_traces")
    google_traces = script("checks", "google_traces")
    optimizer, theta = l2o.load_unbound(path)
    monkeypatch.setattr(google_traces, "from_config", lambda cls, config: optimizer)
    monkeypatch.setattr(google_traces, "from_tree", lambda tree, optimizer: theta)
    found = check_traces.differences(check_traces.replay(trace))
    for tensor, (difference, tolerance, moved) in found.items():
        assert difference <= tolerance, tensor
        assert moved > 5 * tolerance, tensor
