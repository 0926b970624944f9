"""Procedural sequences: short signals with a shape in them."""

import functools

import numpy as np

from ._base import Dataset, from_arrays

_LENGTH = 40


@functools.cache
def signals(count: int = 5000) -> Dataset:
    """Signals of 40 samples, each with one of ten shapes somewhere, in noise.

    A shape is a curve of 12 random points (the same for all examples of a class),
    stretched, scaled, sheared and placed at random; then smooth and white noise are
    added. A cousin of MNIST-1D, with other shapes.

    Args:
      count: of examples, as many of each class.

    x: (n, 40, 1) float32, y: (n,) int32. 70 / 10 / 10 / 10 percent.

    Source: after Greydanus & Kobak, "Scaling down deep learning with MNIST-1D" (2020).
    """
    rng = np.random.default_rng(4)
    shapes = np.cumsum(rng.standard_normal((10, 12)), 1)
    shapes -= shapes.mean(1, keepdims=True)
    shapes /= abs(shapes).max(1, keepdims=True)
    y = np.arange(count) % 10
    x = np.empty((count, _LENGTH))
    for i, label in enumerate(y):
        width = rng.integers(12, 29)
        at = np.linspace(0, 11, width)
        shape = np.interp(at, np.arange(12), shapes[label]) * rng.uniform(0.6, 1.4)
        shape += rng.uniform(-0.75, 0.75) * np.linspace(-0.5, 0.5, width)
        start = rng.integers(0, _LENGTH - width + 1)
        smooth = np.convolve(rng.standard_normal(_LENGTH + 8), np.ones(9) / 9, "valid")
        x[i] = 0.75 * smooth + 0.02 * rng.standard_normal(_LENGTH)
        x[i, start : start + width] += shape
    return from_arrays({"x": x[..., None].astype(np.float32), "y": y.astype(np.int32)})


@functools.cache
def graphs(count: int = 1000, nodes: int = 16) -> Dataset:
    """Random graphs of two communities; which one a node belongs to is its label.

    Stochastic block models: edges within a community with probability 0.5, between
    them 0.1. A node sees its degree and noise, but for the first node of each
    community, which carries a mark: labels are defined up to those marks. The
    adjacency has self-loops and is normalised symmetrically.

    x: (n, nodes, nodes + 4) float32, a node's row of the adjacency and its features;
    y: (n, nodes) int32. 70 / 10 / 10 / 10 percent.

    Source: Holland et al., "Stochastic blockmodels" (1983).
    """
    rng = np.random.default_rng(5)
    y = np.tile(np.arange(nodes) % 2, (count, 1))
    same = y[:, :, None] == y[:, None, :]
    edges = rng.uniform(size=same.shape) < np.where(same, 0.5, 0.1)
    edges = np.triu(edges, 1)
    adjacency = (edges | edges.swapaxes(1, 2) | np.eye(nodes, dtype=bool)).astype(float)
    degree = adjacency.sum(-1)
    normal = adjacency / np.sqrt(degree[:, :, None] * degree[:, None, :])
    features = rng.standard_normal((count, nodes, 4))
    features[..., 0] = degree / nodes
    features[..., 1:3] = 0
    features[:, 0, 1] = features[:, 1, 2] = 1
    # In a random order, so that a position tells nothing.
    order = rng.permuted(np.tile(np.arange(nodes), (count, 1)), axis=1)
    rows = np.arange(count)[:, None]
    normal = normal[rows[..., None], order[:, :, None], order[:, None, :]]
    x = np.concatenate([normal, features[rows, order]], -1).astype(np.float32)
    return from_arrays({"x": x, "y": y[rows, order].astype(np.int32)})
