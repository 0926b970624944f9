"""What every augmentation is: a change of the tasks, and draws of its own per task."""

from collections.abc import Callable
from typing import Any

import jax

from .._base import Task, TaskFamily


def wrap(
    family: TaskFamily,
    suffix: str,
    change: Callable[[Task, dict[str, Any]], Task],
    draws: Callable[[jax.Array], dict[str, jax.Array]] | None = None,
    salt: int = 0,
    view: Callable[[Any, dict[str, Any]], Any] = lambda data, config: data,
) -> TaskFamily:
    """The family whose configs are `{"base": the family's, **draws(key)}`.

    Args:
      family: the one to augment; its own draws stay what they are.
      suffix: of the name.
      change: `(task, config) -> task`.
      draws: from a key of its own; None draws nothing.
      salt: keeps that key apart from others.
      view: `(data, config) -> data` for the family's tasks.
    """

    def sample(key):
        config = {"base": family.sample(key)}
        if draws is not None:
            config |= draws(jax.random.fold_in(key, salt + layers(config)))
        return config

    def task(config, data):
        return change(family.task(config["base"], view(data, config)), config)

    optimum = family.optimum

    def smallest(config, data):
        assert optimum is not None
        return optimum(config["base"], view(data, config))

    return family._replace(
        sample=sample,
        task=task,
        name=f"{family.name}/{suffix}",
        optimum=smallest if optimum is not None else None,
    )


def layers(config: dict[str, Any]) -> int:
    """How many wrappers lie below: keeps apart the draws of two of one kind."""
    below = config["base"]
    if isinstance(below, dict) and "base" in below:
        return 1 + layers(below)
    return 0
