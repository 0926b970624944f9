"""Implicit differentiation: hyper-gradients at the solution of the inner problem."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import optax
from jax.scipy.sparse.linalg import cg

from l2o.names import check_known

from ._backprop import finite_mean, first_run, masked
from ._base import MetaGradient
from ._episode_lengths import Schedule
from ._episodes import RUNS_SPECS, make_episodes, over_runs, spread, window_info
from ._objective import Objective, evaluate_objective
from ._problem import Bilevel
from ._unroll import InnerState


def implicit(
    problem: Bilevel,
    schedule: Schedule,
    *,
    particles: int = 1,
    truncation: int = 50,
    max_offset: int = 0,
    objective: Objective = Objective(split="inner_valid"),  # noqa: B008
    solver: Literal["cg", "neumann"] = "cg",
    iterations: int = 20,
    step_size: float | None = None,
    damping: float = 0.0,
) -> MetaGradient:
    r"""The gradient through the minimum of the inner loss, without its history.

    .. math:: \frac{dF}{d\theta} = \partial_\theta F -
              (\partial_\theta \nabla_w f)^T \, (\nabla_w^2 f)^{-1} \, \nabla_w F
              \quad \text{where} \quad \nabla_w f(w, \theta) = 0

    Each call trains for K steps and then differentiates at the parameters it has come
    to, as if they were the minimum of the training loss f. Exact where they are, on the
    batch that is drawn; its cost does not depend on how long training took. Only what
    the loss depends on has a gradient: not the learning rate of the inner optimizer.

    Args:
      problem: what theta is; usually `learn_hyperparameters(...)`.
      schedule: draws the length of each episode; a long one goes on from where the last
        call has left the inner parameters (warm start).
      particles: N, the number of inner runs.
      truncation: K, inner steps per call.
      max_offset: as in `gpes`.
      objective: F, on fresh batches of a split; `metric` names the entry of `aux` that
        leaves the regulariser out.
      solver: "cg", conjugate gradients, for a Hessian that is positive definite; or
        "neumann", `a sum_{i < iterations} (I - a H)^i`, for any of which `a H` has
        eigenvalues in (0, 2). J terms equal backpropagation through the last J steps
        of gradient descent with learning rate a.
      iterations: of the solver, one Hessian-vector product each.
      step_size: a, of the Neumann series; the inner learning rate is a good choice.
      damping: added to the Hessian's diagonal.

    Raises:
      ValueError: a number out of range, an objective without a split, a Neumann series
        without `step_size`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from l2o.meta_train import constant, implicit, learn_hyperparameters
      >>> from l2o.tasks import stateless
      >>> def task(log_decay, config, data):
      ...     return stateless(
      ...         init=lambda key: jnp.zeros(3),
      ...         batch=lambda key, split: jnp.float32(split == "train"),
      ...         loss=lambda w, key, train: jnp.sum(
      ...             (w - 1) ** 2 + train * jnp.exp(log_decay) * w**2
      ...         ),
      ...     )
      >>> problem = learn_hyperparameters(
      ...     lambda key: jnp.float32(-2.0), task, tx=optax.sgd(0.1)
      ... )
      >>> estimator = implicit(problem, constant(1000))

    Source: "Optimizing millions of hyperparameters by implicit differentiation"
    (Lorraine et al., 2020); "Hyperparameter optimization with approximate gradient"
    (Pedregosa, 2016).
    """
    if objective.split is None:
        raise ValueError("implicit needs an Objective with a split to evaluate on")
    check_known("solver", solver, ("cg", "neumann"))
    rate = 0.0 if step_size is None else step_size
    if solver == "neumann" and not rate > 0:
        raise ValueError("a Neumann series needs step_size > 0")
    if iterations < 1 or damping < 0:
        raise ValueError(
            f"implicit needs iterations >= 1 and damping >= 0, not {iterations}, "
            f"{damping}"
        )
    episodes = make_episodes(
        problem,
        schedule,
        objective._replace(over="telescoping"),  # measured at the window's end
        particles=particles,
        truncation=truncation,
        max_offset=max_offset,
    )

    hypergradient = functools.partial(
        _hypergradient,
        problem,
        objective,
        _Solver(solver, iterations, rate, damping),
    )

    def init(key, theta):
        return episodes.init(key, spread(theta, 1, particles), problem.data)

    def estimate(key, theta, state, data, step=0):
        thetas = spread(theta, 1, particles)
        k_restart, k_batches = jax.random.split(key)
        start = episodes.restart(state, k_restart, thetas, data, step)
        runs, window = episodes.advance(start, thetas, data)
        gradients = over_runs(hypergradient, 2, 3)(
            thetas,
            runs.inner,
            runs.config,
            jax.random.split(k_batches, particles),
            runs.length,
            data,
        )
        measured = window.measured[0, :, 0]
        gradient, finite = finite_mean(first_run(gradients), measured)
        info = window_info(start, runs, window, finite)
        return masked(problem, theta, gradient), runs, info

    return MetaGradient(init, estimate, RUNS_SPECS)


class _Solver(NamedTuple):
    """Of the linear equations; the arguments of `implicit`."""

    name: str
    iterations: int
    rate: float
    damping: float


def _hypergradient(
    problem: Bilevel,
    objective: Objective,
    solver: _Solver,
    theta: Any,
    inner: InnerState,
    config: Any,
    key: jax.Array,
    length: jax.Array,
    data: Any,
) -> Any:
    """The gradient of one run, at the parameters that it has come to."""
    k_train, k_loss, k_outer = jax.random.split(key, 3)
    model_state = inner.model_state

    def inner_slope(w, theta):
        _, task = problem.inner(theta, config, data, length)
        batch = task.batch(k_train, "train")
        return jax.grad(task.loss, has_aux=True)(w, model_state, k_loss, batch)[0]

    def outer(theta, w):
        _, task = problem.inner(theta, config, data, length)
        return evaluate_objective(objective, task, w, model_state, k_outer)

    w = inner.params
    direct, b = jax.grad(outer, argnums=(0, 1))(theta, w)

    def hessian(v):
        _, product = jax.jvp(lambda w: inner_slope(w, theta), (w,), (v,))
        return optax.tree.add_scale(product, solver.damping, v)

    adjoint = _solved(solver, hessian, b)
    _, pull = jax.vjp(lambda theta: inner_slope(w, theta), theta)
    (indirect,) = pull(adjoint)
    return optax.tree.sub(direct, indirect)


def _solved(solver: _Solver, hessian: Callable[[Any], Any], b: Any) -> Any:
    """H^-1 b, nearly."""
    if solver.name == "cg":
        return cg(hessian, b, maxiter=solver.iterations)[0]

    def term(carry, _):
        power, total = carry
        total = optax.tree.add(total, power)
        power = optax.tree.add_scale(power, -solver.rate, hessian(power))
        return (power, total), None

    start = (b, optax.tree.zeros_like(b))
    (_, total), _ = jax.lax.scan(term, start, length=solver.iterations)
    return optax.tree.scale(solver.rate, total)
