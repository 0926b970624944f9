"""What an update rule does, seen from outside: slices, saliency, step sizes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import l2o
from l2o.rule import SMALL_FC_FEATURES, feature_sizes
from l2o.tasks import TaskFamily

from .._palette import COLOURS
from ..estimators._unroll import inner_init, inner_step

_SHAPE = (32, 32)
_WARM = 100  # updates with random gradients before a slice is taken
_BIASED = 30  # of them the last so many have a mean
_POINTS = np.linspace(-3, 3, 61)
_NOMINAL_STEPS = 1000  # told to optimizers that ask for the length of the run


class Slices(NamedTuple):
    """Updates of one entry of a matrix, over their root mean square.

    Attributes:
      x: (61,), in standard deviations of the gradient.
      gradient: (61,), updates at this gradient, after unbiased gradients.
      momentum: (61,), updates at a gradient of zero, after some with this mean.
    """

    x: np.ndarray
    gradient: np.ndarray
    momentum: np.ndarray


class Steps(NamedTuple):
    """A run's updates; arrays of shape (steps,).

    Attributes:
      size: root mean square of the update.
      relative: its norm over that of the parameters.
      cosine: between the update and the direction of steepest descent.
    """

    size: np.ndarray
    relative: np.ndarray
    cosine: np.ndarray


def slices(tx: optax.GradientTransformation, seed: int = 0) -> Slices:
    """How an update answers to the gradient and to its mean over past steps.

    A 32 x 32 matrix of standard normal parameters has had 100 gradients, standard
    normal too; what is varied is one of its entries.
    """
    tx = optax.with_extra_args_support(tx)
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {"w": jax.random.normal(keys[0], _SHAPE)}
    noise = jax.random.normal(keys[1], (_WARM, *_SHAPE))
    last = jax.random.normal(keys[2], _SHAPE)
    value = jnp.float32(1.0)

    def update_after(mean, gradient):
        def warm(state, at):
            i, g = at
            bias = jnp.where(i >= _WARM - _BIASED, mean, 0.0)
            g = {"w": g.at[0, 0].add(bias)}
            return tx.update(g, state, params, value=value)[1], None

        start = jnp.arange(_WARM), noise
        state, _ = jax.lax.scan(warm, tx.init(params), start)
        g = {"w": last.at[0, 0].set(gradient)}
        u = tx.update(g, state, params, value=value)[0]["w"]
        return u[0, 0] / jnp.sqrt(jnp.mean(u**2) + 1e-30)

    zeros = jnp.zeros(len(_POINTS))
    points = jnp.asarray(_POINTS, jnp.float32)
    run = jax.jit(lambda *at: jax.lax.map(lambda x: update_after(*x), at))
    by_gradient, by_mean = run(zeros, points), run(points, zeros)
    return Slices(_POINTS, np.asarray(by_gradient), np.asarray(by_mean))


def step_sizes(
    tx: optax.GradientTransformation, family: TaskFamily, *, steps: int, seed: int = 0
) -> Steps:
    """The updates of one run on a task of the family."""
    tx = optax.with_extra_args_support(tx)
    k_config, k_init, k_steps = jax.random.split(jax.random.key(seed), 3)

    @jax.jit
    def run(data):
        task = family.task(family.sample(k_config), data)

        def seen(state, t):
            grads = []

            def keep(loss_fn, loss, g):
                grads.append(g)
                return {"value": loss}

            k_step = jax.random.fold_in(k_steps, t)
            new, _, _ = inner_step(tx, task, state, k_step, extra=keep)
            change = optax.tree.sub(new.params, state.params)
            norm, size = optax.tree.norm(change), optax.tree.size(change)
            down = -optax.tree.vdot(change, grads[0])
            cosine = down / (norm * optax.tree.norm(grads[0]) + 1e-30)
            relative = norm / optax.tree.norm(state.params)
            return new, (norm / np.sqrt(size), relative, cosine)

        return jax.lax.scan(seen, inner_init(tx, task, k_init), jnp.arange(steps))[1]

    return Steps(*map(np.asarray, run(family.data)))


def saliency(
    optimizer: l2o.LearnedOptimizer,
    theta: Any,
    family: TaskFamily,
    *,
    steps: int,
    seed: int = 0,
) -> dict[str, float]:
    """How much updates change without a group of features, on average over a run.

    .. math:: |u_{\\theta \\setminus f} - u_\\theta| / |u_\\theta|

    with the group's rows of the first weights set to zero, everything else as it was.

    Returns:
      By group of features; empty for an optimizer whose network has no such groups.
    """
    groups = input_groups(optimizer, theta)
    if not groups:
        return {}
    k_config, k_init, k_steps = jax.random.split(jax.random.key(seed), 3)
    first = theta["nn"]["w0"]

    def without(rows):
        return {**theta, "nn": {**theta["nn"], "w0": first * (1 - rows)[:, None]}}

    masks = np.zeros((len(groups), len(first)), np.float32)
    for mask, rows in zip(masks, groups.values(), strict=True):
        mask[list(rows)] = 1

    @jax.jit
    def run(data):
        task = family.task(family.sample(k_config), data)

        def bound(theta):
            return optimizer.bind(theta, num_steps=steps)

        def changes(state, grads, loss):
            def update(theta):
                given = grads, state.opt_state, state.params
                return bound(theta).update(*given, value=loss)[0]

            whole = update(theta)

            def change(rows):
                apart = optax.tree.sub(update(without(rows)), whole)
                return optax.tree.norm(apart) / (optax.tree.norm(whole) + 1e-30)

            return jax.lax.map(change, jnp.asarray(masks))

        def step(state, t):
            found = []

            def keep(loss_fn, loss, grads):
                found.append(changes(state, grads, loss))
                return {"value": loss}

            k_step = jax.random.fold_in(k_steps, t)
            new, _, _ = inner_step(bound(theta), task, state, k_step, extra=keep)
            return new, found[0]

        start = inner_init(bound(theta), task, k_init)
        return jnp.mean(jax.lax.scan(step, start, jnp.arange(steps))[1], 0)

    return dict(zip(groups, np.asarray(run(family.data)).tolist(), strict=True))


def input_groups(optimizer: l2o.LearnedOptimizer, theta: Any) -> dict[str, range]:
    """Per group of features its rows of the network's first weights."""
    arguments = optimizer.arguments
    small = optimizer.name == "small_fc"
    names = SMALL_FC_FEATURES if small else arguments.get("features", ())
    nn = theta.get("nn") if isinstance(theta, dict) else None
    if not names or not isinstance(nn, dict) or np.ndim(nn.get("w0", 0)) != 2:
        return {}
    counts = [
        len(arguments[f"{kind}_decays"]) for kind in ("momentum", "rms", "adafactor")
    ]
    groups, start = {}, 0
    for name, size in zip(names, feature_sizes(names, *counts), strict=True):
        groups[name] = range(start, start + size)
        start += size
    if start < len(nn["w0"]):
        groups["equal for the tensor"] = range(start, len(nn["w0"]))
    return groups


def behaviour_figures(
    optimizer: l2o.LearnedOptimizer, theta: Any, family: TaskFamily, *, steps: int = 300
) -> list[tuple[str, Figure, str]]:
    """Pictures of a rule beside Adam and SGD: (title, figure, text in its place).

    Args:
      optimizer, theta: the rule.
      family: where step sizes and saliency are seen.
      steps: of that run.
    """
    tx = optimizer.bind(theta, num_steps=_NOMINAL_STEPS)
    rivals = {"Adam": optax.adam(1e-3), "SGD, momentum 0.9": optax.sgd(1.0, 0.9)}
    every = {"learned": tx, **rivals}
    found = [
        _slices_figure({name: slices(x) for name, x in every.items()}),
        _steps_figure(
            {
                "learned": step_sizes(tx, family, steps=steps),
                "Adam, rate 0.001": step_sizes(rivals["Adam"], family, steps=steps),
            },
            family.name,
        ),
    ]
    if salient := saliency(optimizer, theta, family, steps=min(steps, 50)):
        found.append(_saliency_figure(salient, family.name))
    return found


_STYLES = ("-", "--", ":")


def _slices_figure(found: dict[str, Slices]) -> tuple[str, Figure, str]:
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, x), colour, style in zip(found.items(), COLOURS, _STYLES, strict=False):
        left.plot(x.x, x.gradient, style, color=colour, label=name)
        right.plot(x.x, x.momentum, style, color=colour)
    left.set(xlabel="gradient / its standard deviation", ylabel="update / its RMS")
    right.set(xlabel="mean of the last 30 gradients, this one being 0")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    slope = np.polyfit(_POINTS, found["learned"].gradient, 1)[0]
    return (
        "Update against gradient and against momentum",
        figure,
        "Two line plots of the update of one entry, for the learned rule, Adam and "
        "SGD: against its gradient, and against the mean of past ones. The learned "
        f"rule's slope in the gradient is {slope:.2g} on average",
    )


def _steps_figure(found: dict[str, Steps], task: str) -> tuple[str, Figure, str]:
    figure = Figure(figsize=(8, 3.0), layout="constrained")
    panels = figure.subplots(1, 3)
    names = ("RMS of the update", "update / parameters, norms", "cosine with descent")
    for (name, x), colour, style in zip(found.items(), COLOURS, _STYLES, strict=False):
        for axes, y in zip(panels, x, strict=True):
            axes.plot(y, style, color=colour, label=name, lw=1)
    for axes, name in zip(panels, names, strict=True):
        axes.set(title=name, xlabel=f"step on {task}")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yscale("log")
    panels[1].set_yscale("log")
    panels[0].legend(frameon=False)
    first, last = (found["learned"].size[i] for i in (0, -1))
    return (
        "Effective step size over training",
        figure,
        f"Three line plots over {len(found['learned'].size)} steps on {task}: size of "
        "the update, size relative to the parameters, cosine with the negative "
        f"gradient. The learned rule's update goes from {first:.2g} to {last:.2g}",
    )


def _saliency_figure(found: dict[str, float], task: str) -> tuple[str, Figure, str]:
    names: Sequence[str] = sorted(found, key=lambda name: found[name])
    figure = Figure(figsize=(6, 0.28 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [found[name] for name in names], color=COLOURS[0])
    axes.set(xlabel="relative change of the update without it")
    axes.grid(alpha=0.2, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    top = ", ".join(f"{name} {found[name]:.2g}" for name in list(names)[::-1][:3])
    return (
        f"Which features matter, on {task}",
        figure,
        "Bar chart of the relative change of the update when a group of features is "
        f"taken away; the largest: {top}",
    )
