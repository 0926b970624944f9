"""Logistic regression with a 1-norm."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from .._base import TaskFamily, log_scaled, stateless
from ..data import Dataset, View, load_dataset, sample_batch
from ._composite import Composite, Gradient, check_gradient, spectral_square
from ._lasso import sparse_vector


def logistic_regression(
    rows: int = 1000,
    dim: int = 50,
    nonzeros: int = 20,
    *,
    rho: float = 0.1,
    dataset: str | Dataset | None = None,
    batch_size: int | None = None,
    gradient: Gradient = "full",
) -> TaskFamily:
    r"""Sparse logistic regression, on random or real features.

    .. math:: F(x) = \tfrac1m \sum_i \left[\log(1 + e^{w_i x}) - y_i\, w_i x\right]
              + \rho \|x\|_1, \quad y = 1[W x^* \ge 0], \quad x(0) = 0

    W is N(0, 1) and x* has `nonzeros` entries from N(0, 1); every task draws all anew.
    The defaults are the published sizes.

    Args:
      rows, dim: of W; not used with a dataset.
      nonzeros: of x*; not used with a dataset.
      rho: weight of the 1-norm.
      dataset: name of a table, or a dataset, of which W are the features and y says
        whether the label is a class that the task draws (always 1 of two).
      batch_size: rows in a batch, drawn with replacement; all by default.
      gradient: "full" is F's; "smooth" is that of the first term, which `l2o_pa` and
        other proximal methods want, while the loss's value stays F.

    The meta-loss is `log_scaled` by F(0) = log 2. `optimum` is F after 5000 iterations
    of FISTA, on the training split. The gradient's Lipschitz constant is
    `logistic_problem(**config).lipschitz`, about 0.37 for the published size.

    Raises:
      ValueError: unknown gradient, more non-zeros than entries, or a dataset without
        integer labels.

    Example:
      >>> from l2o.tasks import make_family
      >>> random = make_family("logistic_regression", rows=100, dim=10, nonzeros=4)
      >>> real = make_family("logistic_regression", dataset="breast_cancer", rho=0.01)

    Source: "Towards constituting mathematical structures for learning to optimize" (Liu
    et al., 2023).
    """
    check_gradient(gradient)
    table = None if dataset is None else load_dataset(dataset)
    if table is not None:
        labels = table.train["y"]
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError("logistic_regression needs a dataset with integer labels")
        classes = 1 + int(labels.max())
        dim = math.prod(table.train["x"].shape[1:])
    elif nonzeros > dim:
        raise ValueError(f"{nonzeros} of {dim} entries cannot be non-zero")

    def sample(key):
        if table is not None:
            # Of two classes the other one is the same problem with -x.
            drawn = jax.random.randint(key, (), 0, classes) if classes > 2 else 1
            return {"label": jnp.asarray(drawn), "rho": jnp.asarray(rho)}
        k_features, k_places, k_values = jax.random.split(key, 3)
        features = jax.random.normal(k_features, (rows, dim))
        logits = features @ sparse_vector(k_places, k_values, dim, nonzeros)
        labels = (logits >= 0).astype(features.dtype)
        return {"features": features, "labels": labels, "rho": jnp.asarray(rho)}

    def as_rows(examples, config):
        x, y = jnp.asarray(examples["x"]), jnp.asarray(examples["y"])
        labels = (y == config["label"]).astype(x.dtype)
        return {"features": x.reshape(len(x), -1), "labels": labels}

    def whole(config, data, split="train"):
        if table is not None:
            if isinstance(data, View):
                raise ValueError(
                    "truncated_data and label_noise of logistic_regression need a "
                    "batch_size, and have no optimum"
                )
            return as_rows(getattr(data, split), config)
        return {name: config[name] for name in ("features", "labels")}

    def task(config, data):
        def batch(key, split):
            if batch_size is None:
                return whole(config, data, split)
            if table is not None:
                return as_rows(sample_batch(data, split, key, batch_size), config)
            index = jax.random.randint(key, (batch_size,), 0, rows)
            return {name: array[index] for name, array in whole(config, data).items()}

        def loss(x, key, batch):
            del key
            return logistic_problem(**batch, rho=config["rho"]).loss(x, gradient)

        normalize = log_scaled(math.log(2))
        return stateless(lambda key: jnp.zeros(dim), batch, loss, normalize)

    def optimum(config, data):
        problem = logistic_problem(**whole(config, data), rho=config["rho"])
        return problem.minimum(jnp.zeros(dim))

    name = f"logistic{rows}x{dim}"
    if dataset is not None:
        name = f"logistic-{dataset}" if isinstance(dataset, str) else "logistic-data"
    data = () if table is None else table
    return TaskFamily(sample, task, data, name, jax.jit(optimum))


def logistic_problem(
    features: jax.Array,
    labels: jax.Array,
    rho: Any,
    *,
    published_lipschitz: bool = False,
) -> Composite:
    r"""The two parts of a sparse logistic regression.

    .. math:: f(x) = \tfrac1m \sum_i \left[\log(1 + e^{w_i x}) - y_i\, w_i x\right],
              \quad L = \|W\|_2^2 / (4 m)

    Args:
      features: W.
      labels: y, 0 or 1.
      rho: weight of the 1-norm.
      published_lipschitz: L is `||W||_2`, as in the published code: steps about a
        hundred times too small for 1000 rows of 50.

    Example:
      >>> import jax.numpy as jnp
      >>> from l2o.tasks import logistic_problem
      >>> problem = logistic_problem(2 * jnp.eye(2), jnp.array([0.0, 1.0]), 0.1)
      >>> float(problem.lipschitz)
      0.5
    """

    def smooth(x):
        logits = features @ x
        return jnp.mean(jnp.logaddexp(0.0, logits) - labels * logits)

    def bound():
        square = spectral_square(features)
        return jnp.sqrt(square) if published_lipschitz else square / (4 * len(features))

    return Composite(smooth, rho, bound)
