"""One-dimensional SGD on a parabola: what every estimator's mean must be.

f = a x^2 / 2 trained by SGD whose learning rate is theta: after t steps the loss is
c r^(2t) with r = 1 - a theta and c = a x0^2 / 2; with perturbations eps ~ N(0, sigma^2)
its expectation is made of M_k = E (r - a eps)^(2k).
"""

import math

import jax
import jax.numpy as jnp
import optax

import l2o
from l2o.meta_train import learn_optimizer
from l2o.tasks import Task, TaskFamily

A, X0, THETA, STD = 1.7, 1.3, 0.35, 0.2
R, C = 1 - A * THETA, A * X0**2 / 2


def sgd():
    """theta is the learning rate."""

    def bind(theta, *, num_steps=None):
        return optax.with_extra_args_support(optax.sgd(theta))

    return l2o.LearnedOptimizer(lambda key: jnp.float32(THETA), bind)


def parabola(normalize=lambda loss: loss):
    """Two metrics: "twice" the loss, and "split", 1 on inner_valid and 0 elsewhere."""

    def loss(x, model_state, key, batch):
        value = A * x**2 / 2
        return value, (model_state, {"twice": 2 * value, "split": batch * x})

    task = Task(
        init=lambda key: (jnp.float32(X0), ()),
        batch=lambda key, split: jnp.float32(split == "inner_valid"),
        loss=loss,
        normalize=normalize,
    )
    return TaskFamily(lambda key: (), lambda config, data: task)


def problem(normalize=lambda loss: loss):
    return learn_optimizer(sgd(), parabola(normalize))


def smoothed(k):
    """M_k and its derivative with respect to theta."""
    e = A * STD

    def term(i, power, factor):
        odd = math.prod(range(1, 2 * i, 2))
        return math.comb(2 * k, 2 * i) * factor * R**power * e ** (2 * i) * odd

    value = sum(term(i, 2 * k - 2 * i, 1.0) for i in range(k + 1))
    slope = -A * sum(term(i, 2 * k - 2 * i - 1, 2 * k - 2 * i) for i in range(k))
    return value, slope


def exact(t):
    """Of the loss after t steps, without smoothing."""
    return -t * A**2 * X0**2 * R ** (2 * t - 1)


def full(t):
    """Full ES, NRES: one perturbation per episode."""
    return C * smoothed(t)[1]


def persistent(t, window):
    """PES, or GPES whose period is `window`: a perturbation per window."""
    n, j = divmod(t, window)
    whole, dwhole = smoothed(window)
    part, dpart = smoothed(j) if j else (1.0, 0.0)
    before = n * whole ** max(n - 1, 0) * dwhole * part if n else 0.0
    return C * (whole**n * dpart + before)


def truncated(t, window):
    """Truncated ES that carries the run at theta + eps on.

    The window of a loss is that in which it is recorded, before its update.
    """
    n, j = divmod(t, window)
    return C * smoothed(window)[0] ** n * smoothed(j)[1] if j else 0.0


def truncated_unperturbed(t, window):
    """Truncated ES that carries the run at theta on."""
    n, j = divmod(t, window)
    return C * R ** (2 * n * window) * smoothed(j)[1] if j else 0.0


def truncated_exact(t, window):
    """Truncated backpropagation."""
    return exact(t) * (t % window) / t if t % window else 0.0


KEY = jax.random.key(0)
