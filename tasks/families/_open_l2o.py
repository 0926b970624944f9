"""The coordinate-wise problems of Open-L2O: many instances as one task."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from l2o.names import check_known

from .._base import TaskFamily, stateless
from ._lasso import lasso_problem
from ._variants import above_floor

Name = Literal["quadratic", "lasso", "rastrigin"]
_RHO = 0.005


def open_l2o(
    name: Name = "quadratic",
    dim: int = 10,
    *,
    rows: int | None = None,
    instances: int = 128,
) -> TaskFamily:
    r"""The mean of many random problems of one kind.

    ===========  ======================================================================
    "quadratic"  `||W x - y||^2`
    "lasso"      `||W x - y||^2 / 2 + 0.005 ||x||_1`
    "rastrigin"  `||A x - b||^2 / 2 - 10 c^T cos(2 pi x) + 10 n`
    ===========  ======================================================================

    W and y are U(0, 1) and x(0) ~ N(0, 0.01^2); of Rastrigin's function A, b, c and
    x(0) are N(0, 1). The parameters are (instances, dim), the loss is the mean over
    instances: gradients are as much smaller.

    Args:
      name: one of these.
      dim: n; published are 10, and 2 for Rastrigin's function too.
      rows: of W and A, n by default; published for the LASSO are also 5 x 10 and
        25 x 50, there with fixed data.
      instances: in one task.

    The meta-loss is `log_scaled` by the loss at 0, from 0 up; Rastrigin's function has
    the mean of `10 n - 10 |c|_1` for its lower end. `optimum` is 0 for the square
    quadratic, by a QR decomposition for other shapes and by FISTA for the LASSO; for
    Rastrigin's function it is not known.

    Raises:
      ValueError: unknown name.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("open_l2o", name="rastrigin", dim=2)

    Source: "Learning to learn by gradient descent by gradient descent" (Andrychowicz et
    al., 2016) for the quadratic; Open-L2O (Chen et al., 2022).
    """
    check_known("problem", name, get_args(Name))
    m = dim if rows is None else rows

    def sample(key):
        k_matrix, k_target, k_waves = jax.random.split(key, 3)
        draw = jax.random.normal if name == "rastrigin" else jax.random.uniform
        config = {
            "matrix": draw(k_matrix, (instances, m, dim)),
            "target": draw(k_target, (instances, m)),
        }
        if name == "rastrigin":
            config["waves"] = jax.random.normal(k_waves, (instances, dim))
        return config

    def instance_loss(config, x):
        residual = config["matrix"] @ x - config["target"]
        square = jnp.sum(residual**2)
        if name == "quadratic":
            return square
        if name == "lasso":
            return 0.5 * square + _RHO * jnp.sum(jnp.abs(x))
        waves = config["waves"] @ jnp.cos(2 * jnp.pi * x)
        return 0.5 * square - 10 * waves + 10 * dim

    def mean_loss(config, x):
        return jnp.mean(jax.vmap(instance_loss)(config, x))

    def task(config, data):
        del data
        floor: Any
        std = 1.0 if name == "rastrigin" else 0.01
        if name == "rastrigin":
            # Half of its waves' height above where all of them would be at their best.
            height = 10 * jnp.mean(jnp.sum(jnp.abs(config["waves"]), -1))
            floor, scale = 10 * dim - height, height + 0.5 * m * (dim + 1)
        else:
            floor, scale = 0.0, mean_loss(config, jnp.zeros((instances, dim)))
        return stateless(
            init=lambda key: std * jax.random.normal(key, (instances, dim)),
            batch=lambda key, split: (),
            loss=lambda x, key, batch: mean_loss(config, x),
            normalize=above_floor(floor, scale),
        )

    def instance_optimum(config):
        if name == "lasso":
            return lasso_problem(**config, rho=_RHO).minimum(jnp.zeros(dim))
        if m <= dim:
            return jnp.zeros(())
        basis, _ = jnp.linalg.qr(config["matrix"])
        target = config["target"]
        return jnp.sum((target - basis @ (basis.T @ target)) ** 2)

    @jax.jit
    def optimum(config, data):
        del data
        return jnp.mean(jax.vmap(instance_optimum)(config))

    size = f"{dim}" if rows is None else f"{rows}x{dim}"
    return TaskFamily(
        sample,
        task,
        name=f"open_l2o-{name}{size}",
        optimum=None if name == "rastrigin" else optimum,
    )
