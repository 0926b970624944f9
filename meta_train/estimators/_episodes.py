"""N inner runs in progress, window after window; what all truncated estimators share.

An episode starts and ends at window borders: if its length is no multiple of the window
K, the steps past its end do not count. So a window never holds two episodes, and no
estimator splits a window's losses at a reset.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .._mesh import per_device
from ._base import PARTICLES, Info
from ._episode_lengths import Schedule
from ._objective import Objective, check_objective, normalized, weighted
from ._problem import Bilevel
from ._unroll import InnerState, inner_init, measure_end, unroll


class Runs(NamedTuple):
    """N particles of S inner runs each, that share tasks, keys and batches.

    S is 2 for antithetic pairs, 1 for single runs.
    """

    inner: InnerState  # leaves lead with (S, N)
    previous: Any  # (S, N): the objective at the end of the last window; () if unused
    config: Any  # of the particle's task; like all that follows, leaves lead with (N,)
    key: jax.Array  # of the particle's episode
    step: jax.Array  # int32: inner steps done in this episode
    length: jax.Array  # int32: inner steps this episode will have
    offset: jax.Array  # int32: how much shorter the first episode is


LEADS: Any = PartitionSpec(PARTICLES)  # specs of leaves that lead with (N,)
FOLLOWS: Any = PartitionSpec(None, PARTICLES)  # of leaves that lead with (S, N)
RUNS_SPECS = Runs(
    inner=FOLLOWS,
    previous=FOLLOWS,
    config=LEADS,
    key=LEADS,
    step=LEADS,
    length=LEADS,
    offset=LEADS,
)
_NONE: Any = ()  # where there is no state yet


class Window(NamedTuple):
    """What one window of K steps gave: value = sum of terms / divisor.

    Not summed yet, because runs of a pair are better subtracted term by term.
    """

    terms: jax.Array  # (S, N, M)
    divisor: int
    measured: jax.Array  # (S, N, M): for reports, 0 where it does not count
    counts: jax.Array  # (N, M): bool


class Episodes(NamedTuple):
    """Begins, restarts and advances `Runs`; made by `make_episodes`.

    The mean of a window's value over the windows of an episode is the episode's
    objective (for a mean over steps: exactly so if K divides the length).

    Attributes:
      init: `(key, thetas, data) -> runs` that restart in the first window.
      restart: `(runs, key, thetas, data, outer step) -> runs`: new episodes wherever
        the last has ended; the rest is untouched.
      advance: `(runs, thetas, data) -> (runs, Window)`: K inner steps.
    """

    init: Callable[[jax.Array, Any, Any], Runs]
    restart: Callable[[Runs, jax.Array, Any, Any, Any], Runs]
    advance: Callable[[Runs, Any, Any], tuple[Runs, Window]]


def make_episodes(
    problem: Bilevel,
    schedule: Schedule,
    objective: Objective,
    *,
    particles: int,
    truncation: int,
    max_offset: int,
    levels: int = 0,
    second_derivatives: bool = True,
) -> Episodes:
    """The machinery for one estimator; `thetas` below lead with (S, N).

    Raises:
      ValueError: particles, truncation or max_offset out of range, or an objective
        that truncated unrolls cannot have.
    """
    if particles < 1 or truncation < 1 or max_offset < 0:
        raise ValueError(
            "an estimator needs particles >= 1, truncation >= 1 and max_offset >= 0, "
            f"not {particles}, {truncation}, {max_offset}"
        )
    check_objective(objective, windows=True)
    settings = _Settings(
        problem,
        schedule,
        objective,
        particles,
        truncation,
        max_offset,
        levels,
        second_derivatives,
    )
    return Episodes(
        functools.partial(_init, settings),
        functools.partial(_restart, settings),
        functools.partial(_advance, settings),
    )


def window_info(before: Runs, after: Runs, window: Window, finite: jax.Array) -> Info:
    """About a window that went from `before` (restarted) to `after`.

    Args:
      finite: (N,), the particles that are used.
    """
    signs = len(window.measured)
    measured = jnp.where(finite[:, None], window.measured, 0.0)
    used = window.counts & finite[:, None]
    done = jnp.minimum(after.step, after.length) - before.step
    return Info(
        meta_loss=jnp.sum(measured) / jnp.maximum(signs * total(used), 1),
        inner_steps=signs * total(done),
        episodes=total(after.step >= after.length),
        nonfinite=total(~finite),
        particles=jnp.int32(finite.size),
    )


def total(counts: jax.Array) -> jax.Array:
    """The sum, int32; made in float32 (exact to 2^24) to join the gradient's reduction.

    A mesh has to sum the gradient over its devices anyway: what has another type would
    be a second message.
    """
    return jnp.sum(counts, dtype=jnp.float32).astype(jnp.int32)


def over_runs(
    f: Callable, signed: int, shared: int, *, replaced: int | None = None
) -> Callable:
    """Maps `f(*signed, *shared, data)` over the S runs of N particles.

    The first `signed` arguments lead with (S, N), the next `shared` with (N,). Nested,
    so that what the runs of a particle share (batches, keys) is computed once. The
    first result may take the memory of the argument of number `replaced`.
    """
    over_particles = jax.vmap(f, in_axes=(0,) * (signed + shared) + (None,))
    over = jax.vmap(over_particles, in_axes=(0,) * signed + (None,) * (shared + 1))
    return per_device(_pair_by_pair(over, signed, replaced), signed, shared)


def where(condition: jax.Array, new: Any, old: Any) -> Any:
    """`jnp.where` on trees whose leaves lead with `condition`'s axis."""

    def select(x, y):
        return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(select, new, old)


def spread(theta: Any, *lead: int) -> Any:
    """theta with leading axes of these sizes, all copies equal."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*lead, *x.shape)), theta)


class _Settings(NamedTuple):
    """The arguments of `make_episodes`."""

    problem: Bilevel
    schedule: Schedule
    objective: Objective
    particles: int
    truncation: int
    max_offset: int
    levels: int
    second_derivatives: bool

    @property
    def telescoping(self) -> bool:
        return self.objective.over == "telescoping"


def _init(settings: _Settings, key: jax.Array, thetas: Any, data: Any) -> Runs:
    """The `init` of `Episodes`."""
    particles = settings.particles
    k_offset, k_episodes = jax.random.split(key)
    offset = jax.random.randint(k_offset, (particles,), 0, settings.max_offset + 1)

    def whole(thetas, data):
        runs, k_init = _begin(settings, k_episodes, offset, 0)
        inner = over_runs(functools.partial(_start, settings), 1, 3)(
            thetas, runs.config, k_init, runs.length, data
        )
        signs = len(jax.tree.leaves(thetas)[0])
        previous = jnp.zeros((signs, particles)) if settings.telescoping else ()
        return runs._replace(inner=inner, previous=previous)

    # Steps 0 of length 0: every particle has ended, so the first window begins
    # episodes, and what is in this state but the offsets is never read.
    shapes = jax.eval_shape(whole, thetas, data)
    return jax.tree.map(_placeholder, shapes)._replace(offset=offset)


def _restart(
    settings: _Settings, runs: Runs, key: jax.Array, thetas: Any, data: Any, step: Any
) -> Runs:
    """The `restart` of `Episodes`."""
    done = runs.step >= runs.length
    new, k_init = _begin(settings, key, runs.offset, step)

    def renewed(theta, inner, config, key, length, done, data):
        new = _start(settings, theta, config, key, length, data)
        return (jax.tree.map(lambda x, y: jnp.where(done, x, y), new, inner),)

    # Where it has ended only, so that there is no second state of all.
    (inner,) = over_runs(renewed, 2, 4, replaced=1)(
        thetas, runs.inner, new.config, k_init, new.length, done, data
    )
    previous = jax.tree.map(lambda x: jnp.where(done, 0.0, x), runs.previous)
    rest = where(done, new, runs._replace(inner=_NONE, previous=_NONE))
    return rest._replace(inner=inner, previous=previous)


def _advance(
    settings: _Settings, runs: Runs, thetas: Any, data: Any
) -> tuple[Runs, Window]:
    """The `advance` of `Episodes`."""
    objective, truncation = settings.objective, settings.truncation
    steps = runs.step[:, None] + jnp.arange(truncation)
    inner, values = over_runs(functools.partial(_run, settings), 2, 4, replaced=1)(
        thetas, runs.inner, runs.config, runs.key, runs.length, steps, data
    )
    counts = steps < runs.length[:, None]  # (N, K)
    runs = runs._replace(inner=inner, step=steps[:, -1] + 1)
    if objective.over in ("mean", "late"):
        length = runs.length[:, None]
        terms = weighted(objective, values, steps, length)  # (S, N, K)
        measured = jnp.where(counts, values, 0.0)
        return runs, Window(terms, truncation, measured, counts)
    if objective.at_end:
        end = values[..., 0]
    else:
        last = jnp.sum(counts, -1) - 1  # the last step of the window that counts
        end = jnp.take_along_axis(values, last[None, :, None], -1)[..., 0]
    windows = -(-runs.length // truncation)
    if settings.telescoping:
        value = (end - runs.previous) * windows
        runs = runs._replace(previous=end)
    else:
        value = jnp.where(runs.step >= runs.length, end, 0.0) * windows
    always = jnp.ones((settings.particles, 1), bool)
    return runs, Window(value[..., None], 1, end[..., None], always)


def _begin(
    settings: _Settings, key: jax.Array, offset: jax.Array, step: Any
) -> tuple[Runs, jax.Array]:
    """N particles at their first step, and the keys of their missing states."""
    particles = settings.particles

    def draw(key, step):
        k_config, k_length, k_init, k_steps = jax.random.split(key, 4)
        config = settings.problem.sample(k_config)
        return config, settings.schedule(k_length, step), k_init, k_steps

    config, length, k_init, k_steps = jax.vmap(draw, in_axes=(0, None))(
        jax.random.split(key, particles), step
    )
    runs = Runs(
        inner=_NONE,
        previous=_NONE,
        config=config,
        key=k_steps,
        step=jnp.zeros(particles, jnp.int32),
        length=jnp.maximum(length - offset, 1),
        offset=jnp.zeros(particles, jnp.int32),
    )
    return runs, k_init


def _start(
    settings: _Settings,
    theta: Any,
    config: Any,
    key: jax.Array,
    length: jax.Array,
    data: Any,
) -> InnerState:
    """One run's first inner state."""
    return inner_init(*settings.problem.inner(theta, config, data, length), key)


def _run(
    settings: _Settings,
    theta: Any,
    inner: InnerState,
    config: Any,
    key: jax.Array,
    length: jax.Array,
    steps: jax.Array,
    data: Any,
) -> tuple[InnerState, jax.Array]:
    """One run's inner state after a window, and the objective of its steps."""
    objective = settings.objective
    tx, task = settings.problem.inner(theta, config, data, length)
    inner, values = unroll(
        tx,
        task,
        inner,
        key,
        steps,
        objective,
        # An end that lies inside the window is where the state must stay.
        length=length if objective.at_end else None,
        levels=settings.levels,
        second_derivatives=settings.second_derivatives,
    )
    if objective.at_end:
        end = measure_end(task, inner, key, steps[-1], objective)
        values = values.at[0].set(end)
    return inner, normalized(objective, task, values)


def _pair_by_pair(over: Callable, signed: int, replaced: int | None) -> Callable:
    """On a CPU one particle with two runs after the other.

    A core's cache holds no more. Single runs share more than that costs; and of an axis
    of size one XLA makes better matrix products than without.
    """

    def one_by_one(*arguments):
        *mapped, data = arguments
        signs, particles = jax.tree.leaves(mapped)[0].shape[:2]
        if signs < 2 or jax.default_backend() != "cpu":
            return over(*arguments)

        def at(i, results):
            def one(number, tree):
                tree = results[0] if number == replaced else tree
                axis = 1 if number < signed else 0
                return jax.tree.map(
                    lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis), tree
                )

            new = over(*(one(k, tree) for k, tree in enumerate(mapped)), data)
            return jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, i, 1),
                results,
                new,
            )

        empty = jax.tree.map(_placeholder, jax.eval_shape(over, *arguments))
        if replaced is not None:
            empty = (mapped[replaced], *empty[1:])
        return jax.lax.fori_loop(0, particles, at, empty)

    return one_by_one


def _placeholder(x: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), x.shape)
    return jnp.zeros(x.shape, x.dtype)
