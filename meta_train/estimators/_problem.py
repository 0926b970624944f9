"""Bilevel problems: what theta is, and the inner training that depends on it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o import LearnedOptimizer, trainable, without_skipping
from l2o.tasks import Task, TaskFamily


class Bilevel(NamedTuple):
    """Inner training as a function of theta: what every estimator differentiates.

    `learn_optimizer` and `learn_hyperparameters` make them.

    Attributes:
      init_theta: `key -> theta`.
      sample: `key -> config` of one inner problem, a pytree of arrays; may be vmapped.
      inner: `(theta, config, data, num_steps) -> (tx, task)`; all may be traced.
      data: pytree of arrays on the device, handed to `inner` as an argument.
      trainable: `theta -> tree of bools`; False for what is neither perturbed nor
        updated.
      name: for reports.
    """

    init_theta: Callable[[jax.Array], Any]
    sample: Callable[[jax.Array], Any]
    inner: Callable[
        [Any, Any, Any, Any], tuple[optax.GradientTransformationExtraArgs, Task]
    ]
    data: Any = ()
    trainable: Callable[[Any], Any] = lambda theta: jax.tree.map(lambda x: True, theta)
    name: str = ""


def learn_optimizer(
    optimizer: LearnedOptimizer,
    family: TaskFamily,
    rate_range: tuple[float, float] = (1.0, 1.0),
) -> Bilevel:
    """Theta are the meta-parameters of a learned optimizer.

    Args:
      optimizer: what is meta-trained; its `frozen` parts are left alone.
      family: the inner problems.
      rate_range: all updates of an inner problem are multiplied by a factor from low to
        high, log-uniform, drawn with the problem: what becomes of a learning rate that
        users set. One by default.

    Raises:
      ValueError: a range that is not 0 < low <= high.

    Example:
      >>> import l2o
      >>> from l2o.meta_train import learn_optimizer
      >>> from l2o.tasks import quadratic
      >>> problem = learn_optimizer(l2o.learnable_sgd(), quadratic(3))
    """

    low, high = rate_range
    if not 0 < low <= high:
        raise ValueError(f"rate_range must be 0 < low <= high, not {rate_range}")
    varies = low != 1 or high != 1

    def sample(key):
        if not varies:
            return family.sample(key)
        k_factor, k_task = jax.random.split(key)
        log_factor = jax.random.uniform(
            k_factor, minval=math.log(low), maxval=math.log(high)
        )
        return jnp.exp(log_factor), family.sample(k_task)

    def inner(theta, config, data, num_steps):
        tx = optimizer.bind(theta, num_steps=num_steps)
        if varies:
            factor, config = config
            tx = optax.chain(tx, optax.scale(factor))
        # A choice between two states is dear under vmap, and has derivatives of both.
        return without_skipping(tx), family.task(config, data)

    return Bilevel(
        optimizer.init_theta,
        sample,
        inner,
        family.data,
        lambda theta: trainable(optimizer, theta),
        family.name,
    )


def learn_hyperparameters(
    init_theta: Callable[[jax.Array], Any],
    task: Callable[[Any, Any, Any], Task],
    *,
    tx: optax.GradientTransformation,
    sample: Callable[[jax.Array], Any] = lambda key: (),
    data: Any = (),
    name: str = "",
) -> Bilevel:
    """Theta are hyper-parameters of a task, trained by a fixed optimizer.

    Per-layer weight decay, strengths of augmentation, weights of examples: anything
    that the task's loss depends on. The meta-objective is usually another one than the
    training loss: let `loss` return it in `aux` and name it in an `Objective`, on a
    split that is not trained on.

    Args:
      init_theta: `key -> theta`, a pytree of float arrays.
      task: `(theta, config, data) -> Task`.
      tx: the inner optimizer, any optax transformation.
      sample: `key -> config` of a task; a single task by default.
      data: pytree of arrays, handed to `task`.
      name: for reports.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from l2o.meta_train import learn_hyperparameters
      >>> from l2o.tasks import Task
      >>> def task(log_decay, config, data):
      ...     def loss(w, model_state, key, batch):
      ...         error = jnp.mean((batch["x"] @ w - batch["y"]) ** 2)
      ...         decay = jnp.exp(log_decay) * jnp.sum(w**2)
      ...         return error + decay, (model_state, {"error": error})
      ...     return Task(
      ...         init=lambda key: (jnp.zeros(3), ()),
      ...         batch=lambda key, split: data[split],
      ...         loss=loss,
      ...     )
      >>> split = {"x": jnp.eye(3), "y": jnp.ones(3)}
      >>> problem = learn_hyperparameters(
      ...     lambda key: jnp.float32(-2.0),
      ...     task,
      ...     tx=optax.sgd(0.1),
      ...     data={"train": split, "inner_valid": split},
      ... )
    """
    transformation = optax.with_extra_args_support(tx)

    def inner(theta, config, data, num_steps):
        del num_steps
        return transformation, task(theta, config, data)

    return Bilevel(init_theta, sample, inner, data, name=name)
