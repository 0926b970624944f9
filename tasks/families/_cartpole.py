"""Reinforcement learning as a task: CartPole, its gradient by evolution strategies."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .._base import Task, TaskFamily
from ..augment import es_gradient

_GRAVITY, _FORCE, _TAU = 9.8, 10.0, 0.02
_ANGLE, _TRACK = 12 * 2 * jnp.pi / 360, 2.4


def cartpole(
    hidden: Sequence[int] = (16,),
    *,
    steps: int = 100,
    episodes: int = 8,
    std: float = 0.1,
    pairs: int = 8,
    name: str = "",
) -> TaskFamily:
    r"""A policy that balances a pole on a cart.

    .. math:: L(w) = 1 - \tfrac1{E T} \sum_e \text{steps before the fall}

    The action is the sign of the output of a tanh network of the four state variables:
    the loss is piecewise constant, so its gradient is that of antithetic evolution
    strategies, see `es_gradient`. Masses and the pole's length differ from task to task
    by a factor of up to 1.5; a batch holds the starts.

    Args:
      hidden: widths of the tanh layers.
      steps: T, an episode's length.
      episodes: E, per loss.
      std, pairs: of the evolution strategies.
      name: for reports.

    The loss is in [0, 1]; as a meta-loss it is doubled, so that failing costs 2.

    Example:
      >>> from l2o.tasks import make_family
      >>> family = make_family("cartpole", steps=20, episodes=2, pairs=2)

    Source: Barto, Sutton & Anderson (1983), with the constants of Gym's CartPole-v1;
    Salimans et al., "Evolution strategies as a scalable alternative to reinforcement
    learning" (2017).
    """
    sizes = [4, *hidden, 1]

    def sample(key):
        factor = jnp.exp(jax.random.uniform(key, (3,), minval=-1, maxval=1) * 0.405)
        return {
            "cart": 1.0 * factor[0],
            "pole": 0.1 * factor[1],
            "half_length": 0.5 * factor[2],
        }

    def task(config, data):
        del data

        def init(key):
            keys = jax.random.split(key, len(sizes) - 1)
            return [
                {
                    "w": jax.random.normal(k, (a, b)) / jnp.sqrt(a),
                    "b": jnp.zeros(b),
                }
                for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
            ], ()

        def policy(params, state):
            h = state
            for layer in params[:-1]:
                h = jnp.tanh(h @ layer["w"] + layer["b"])
            return (h @ params[-1]["w"] + params[-1]["b"])[..., 0]

        def batch(key, split):
            del split  # all starts are fresh
            return jax.random.uniform(key, (episodes, 4), minval=-0.05, maxval=0.05)

        def loss(params, model_state, key, starts):
            del key

            def step(carry, _):
                state, up = carry
                force = _FORCE * jnp.sign(policy(params, state))
                state = _physics(config, state, force).astype(state.dtype)
                up &= (abs(state[:, 0]) < _TRACK) & (abs(state[:, 2]) < _ANGLE)
                return (state, up), up

            begin = starts, jnp.ones(episodes, bool)
            _, up = jax.lax.scan(step, begin, length=steps)
            return 1 - jnp.mean(up), (model_state, {})

        return Task(init, batch, loss, _doubled)

    family = es_gradient(TaskFamily(sample, task), std=std, pairs=pairs)
    return family._replace(name=name or "cartpole")


def _physics(config: dict, state: jax.Array, force: jax.Array) -> jax.Array:
    """One Euler step of (position, velocity, angle, angular velocity)."""
    x, x_dot, angle, angle_dot = state.T
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    mass = config["cart"] + config["pole"]
    moment = config["pole"] * config["half_length"]
    push = (force + moment * angle_dot**2 * sin) / mass
    angle_acc = (_GRAVITY * sin - cos * push) / (
        config["half_length"] * (4 / 3 - config["pole"] * cos**2 / mass)
    )
    x_acc = push - moment * angle_acc * cos / mass
    return jnp.stack(
        [
            x + _TAU * x_dot,
            x_dot + _TAU * x_acc,
            angle + _TAU * angle_dot,
            angle_dot + _TAU * angle_acc,
        ],
        -1,
    )


def _doubled(loss: jax.Array) -> jax.Array:
    return 2 * jnp.clip(jnp.where(jnp.isnan(loss), 1.0, loss), 0, 1)
