"""Meta-training as a task: the parameters are those of a learned optimizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import l2o

from .._base import Task, TaskFamily
from .._spec import TaskSpec
from ..data import Split


def train_learned_optimizer(
    optimizer: str = "learnable_adam",
    inner: Mapping[str, Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    steps: int = 10,
    runs: int = 2,
    name: str = "",
) -> TaskFamily:
    r"""Meta-training of a learned optimizer by backpropagation, as an inner problem.

    .. math:: L(\theta) = \tfrac1{RK} \sum_{r,k} \mathrm{normalize}(\ell_r(w_{rk})),
              \quad w_{r,k+1} = w_{rk} + U_\theta(\nabla \ell_r(w_{rk}))

    The parameters are theta; a batch is the keys of R fresh inner problems, trained for
    K steps. The loss is already what counts as a meta-loss, of the inner family; it is
    so for this task, too.

    Args:
      optimizer: architecture, see `l2o.make`.
      inner: the inner family as a mapping, see `TaskSpec.to_dict`; by default
        image MLPs with one hidden layer of 16 on digits.
      options: keyword arguments of the architecture.
      steps: K.
      runs: R.
      name: for reports.

    Example:
      >>> from l2o.tasks import make_family
      >>> inner = {"kind": "quadratic", "options": {"dim": 3}}
      >>> family = make_family("train_learned_optimizer", inner=inner, steps=3)

    Source: the learned-optimizer tasks of VeLO (Metz et al., 2022).
    """
    learned = l2o.make(optimizer, **(options or {}))
    if inner is None:
        inner = {
            "kind": "image_mlp",
            "options": {"datasets": ("digits",), "hidden": (16,), "batch_size": 16},
        }
    family = TaskSpec.from_dict(inner).family()

    def task(config, data):
        del config

        def one(theta, key, split: Split = "train"):
            k_config, k_init, k_steps = jax.random.split(key, 3)
            problem = family.task(family.sample(k_config), data)
            tx = learned.bind(theta, num_steps=steps)
            params, model_state = problem.init(k_init)

            def step(carry, key):
                params, opt_state, model_state = carry
                k_batch, k_loss = jax.random.split(key)
                batch = problem.batch(k_batch, split)
                (loss, (model_state, _)), grads = jax.value_and_grad(
                    problem.loss, has_aux=True
                )(params, model_state, k_loss, batch)
                updates, opt_state = tx.update(grads, opt_state, params, value=loss)
                params = optax.apply_updates(params, updates)
                return (params, opt_state, model_state), problem.normalize(loss)

            carry = params, tx.init(params), model_state
            _, losses = jax.lax.scan(step, carry, jax.random.split(k_steps, steps))
            return jnp.mean(losses)

        def batch(key, split):
            del split  # all inner problems are fresh
            return jax.random.split(key, runs)

        def loss(theta, model_state, key, keys):
            del key
            return jnp.mean(jax.vmap(one, (None, 0))(theta, keys)), (model_state, {})

        return Task(lambda key: (learned.init_theta(key), ()), batch, loss)

    return TaskFamily(
        lambda key: (), task, family.data, name or f"train-{optimizer}-on-{family.name}"
    )
