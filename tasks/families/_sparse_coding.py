"""Sparse coding: a dictionary and sparse codes at once."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .._base import TaskFamily, stateless
from ..data import Dataset, load_dataset
from ._lasso import sparse_vector
from ._variants import above_floor


def sparse_coding(
    atoms: int = 96,
    batch_size: int = 64,
    *,
    rho: float = 0.5,
    dataset: str | Dataset | None = "patches",
    pixels: int = 64,
    nonzeros: int = 5,
) -> TaskFamily:
    r"""Signals as sparse combinations of learned atoms.

    .. math:: L(D, C) = \tfrac1B \left[\tfrac12 \|X - C \hat D\|^2
              + \rho \|C\|_1\right], \quad \hat D_k = D_k / \|D_k\|

    Every task has its own signals X, (B, p), and fits them with both: D, (atoms, p),
    from N(0, 1) and C, (B, atoms), from N(0, 0.01^2). Photographs' patches lose their
    means and get unit variance over the dataset. Without a dataset, X has `nonzeros` of
    N(0, 1) atoms of a random dictionary with unit rows.

    Args:
      atoms: rows of D.
      batch_size: B.
      rho: weight of the 1-norm.
      dataset: name of images, or a dataset, from whose training split X is drawn; None
        for synthetic signals.
      pixels: p of synthetic signals.
      nonzeros: atoms in a synthetic signal.

    The meta-loss is `log_scaled` by the loss without codes, `||X||^2 / (2 B)`. The
    problem is not convex, and its minimum not known.

    Raises:
      ValueError: more non-zeros than atoms.

    Example:
      >>> from l2o.tasks import make_family
      >>> options = {"atoms": 8, "pixels": 6, "nonzeros": 2}
      >>> family = make_family("sparse_coding", dataset=None, **options)

    Source: "Emergence of simple-cell receptive field properties by learning a sparse
    code for natural images" (Olshausen & Field, 1996); "Online dictionary learning for
    sparse coding" (Mairal et al., 2009).
    """
    if nonzeros > atoms:
        raise ValueError(f"{nonzeros} of {atoms} atoms cannot be non-zero")
    data = None if dataset is None else _centred(load_dataset(dataset))
    if data is not None:
        pixels = data.shape[1]

    def sample(key):
        if data is not None:
            return {"index": jax.random.randint(key, (batch_size,), 0, len(data))}
        k_dictionary, k_places, k_values = jax.random.split(key, 3)
        codes = jax.vmap(
            lambda *keys: sparse_vector(keys[0], keys[1], atoms, nonzeros)
        )(
            jax.random.split(k_places, batch_size),
            jax.random.split(k_values, batch_size),
        )
        dictionary = jax.random.normal(k_dictionary, (atoms, pixels))
        return {"signals": codes @ _unit_rows(dictionary)}

    def task(config, data):
        if dataset is None:
            signals = config["signals"]
        else:
            signals = jnp.asarray(data)[config["index"]]

        def init(key):
            k_codes, k_dictionary = jax.random.split(key)
            # Not 0: without codes the dictionary's gradient is, and its root's slope
            # infinite when Adam is differentiated.
            return {
                "codes": 0.01 * jax.random.normal(k_codes, (batch_size, atoms)),
                "dictionary": jax.random.normal(k_dictionary, (atoms, pixels)),
            }

        def loss(params, key, batch):
            del key, batch
            codes = params["codes"]
            residual = signals - codes @ _unit_rows(params["dictionary"])
            total = 0.5 * jnp.sum(residual**2) + rho * jnp.sum(jnp.abs(codes))
            return total / batch_size

        normalize = above_floor(0.0, 0.5 * jnp.sum(signals**2) / batch_size)
        return stateless(init, lambda key, split: (), loss, normalize)

    name = f"sparse_coding{atoms}"
    return TaskFamily(sample, task, () if data is None else data, name)


def _unit_rows(x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-12)


def _centred(dataset: Dataset) -> np.ndarray:
    x = np.asarray(dataset.train["x"])
    x = x.reshape(len(x), math.prod(x.shape[1:]))
    x = x - x.mean(1, keepdims=True)
    return x / x.std()
