"""From a `Config` to what a run is made of: programs and their first state."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

import l2o
from l2o.names import check_known, unknown_name
from l2o.tasks import (
    Stream,
    TaskFamily,
    clipped,
    logarithm,
    make_family,
    reparametrize,
    task_specs,
)

from .._config import Config
from ..estimators._backprop import backprop, truncated_backprop
from ..estimators._base import MetaGradient
from ..estimators._combine import accumulate, average
from ..estimators._episode_lengths import Schedule, log_uniform
from ..estimators._es import gpes, nres, pes, truncated_es
from ..estimators._forward import forward_gradient
from ..estimators._full_es import full_es
from ..estimators._inverse_variance import inverse_variance
from ..estimators._objective import Objective
from ..estimators._problem import Bilevel, learn_optimizer
from ._feed import side_by_side
from ._outer import Outer, make_outer_step, outer_optimizer
from ._population import Population, make_population, make_population_step

# Implicit differentiation is not among them: the inner loss does not depend on the
# theta of an optimizer.
ESTIMATORS: dict[str, Callable[..., MetaGradient]] = {
    "pes": pes,
    "nres": nres,
    "gpes": gpes,
    "truncated_es": truncated_es,
    "full_es": full_es,
    "backprop": backprop,
    "truncated_backprop": truncated_backprop,
    "forward_gradient": forward_gradient,
    "inverse_variance": inverse_variance,
}


_LARGEST = 1e3  # loss of which the logarithm counts


class Part(NamedTuple):
    """One compiled program of a run."""

    name: str
    step: Callable  # (outer, worker, data, numbers) -> (outer, worker, OuterInfo)
    data: Any
    specs: Any  # of the worker, see MetaGradient
    stream: Stream | None = None  # of the data, where they are renewed


class Recipe(NamedTuple):
    """The programs of a run, of which each outer step takes one, and its state."""

    parts: Sequence[Part]
    state: tuple[Any, list[Any]]  # Outer or Population, and one worker per part
    # Of the outer optimizer: handed to the programs, so that one compilation serves all
    # values.
    numbers: dict[str, jax.Array]


def make_families(
    names: Sequence[str],
    level: Literal["none", "global", "tensor", "parameter"],
    scale_range: tuple[float, float],
) -> list[TaskFamily]:
    """Families by name, augmented."""
    families = [spec.family() for spec in task_specs(names).values()]
    if level == "none":
        return families
    return [reparametrize(family, level, scale_range) for family in families]


def make_estimator(
    name: str,
    problem: Bilevel,
    schedule: Schedule,
    options: Mapping[str, Any],
    **common: Any,
) -> MetaGradient:
    """An estimator by name.

    Args:
      name: of `ESTIMATORS`.
      problem, schedule: its positional arguments.
      options: its own keyword arguments.
      common: keyword arguments of which those that it does not have are left out.

    Raises:
      ValueError: an unknown name or option; the message lists the known ones.
    """
    if name not in ESTIMATORS:
        raise ValueError(unknown_name("estimator", name, ESTIMATORS))
    make = ESTIMATORS[name]
    known = set(inspect.signature(make).parameters) - {"problem", "schedule"}
    own = sorted(known - common.keys())
    unknown = sorted(set(options) - set(own))
    if unknown:
        raise ValueError(
            f"unknown option {', '.join(unknown)} of the estimator {name}; known: "
            f"{', '.join(own) or 'none'}"
        )
    if name == "gpes" and "period" not in options:
        raise ValueError(
            "gpes needs estimator_options period: inner steps that share a "
            "perturbation, a multiple of truncation"
        )
    common = {key: value for key, value in common.items() if key in known}
    return make(problem, schedule, **common, **options)


def make_recipe(
    config: Config,
    optimizer: l2o.LearnedOptimizer,
    families: Sequence[TaskFamily],
    start: Any = None,
) -> Recipe:
    """Everything but devices and files.

    Args:
      config: of the run.
      optimizer: what is meta-trained.
      families: what on.
      start: theta to go on from; None draws one.
    """
    optimizer = optimizer._replace(frozen=(*optimizer.frozen, *config.frozen))
    jobs = _jobs(config, optimizer, families)
    k_theta, k_run, *k_workers = jax.random.split(
        jax.random.key(config.seed), 2 + len(jobs)
    )
    theta = optimizer.init_theta(k_theta)
    if start is not None:
        theta = start
    numbers = jax.tree.map(jnp.float32, _numbers(config))
    outer_loop = _OuterLoop(config, optimizer, theta, start is not None)
    make = _single if config.population == 1 else _several
    return make(outer_loop, jobs, numbers, k_run, k_workers)


def theta_of(outer: Outer | Population) -> Any:
    """The theta of a run's state, or its average; of a population, the best's."""
    if isinstance(outer, Population):
        best = jnp.argmin(outer.score)
        return theta_of(jax.tree.map(lambda x: x[best], outer.outer))
    return outer.average if jax.tree.leaves(outer.average) else outer.theta


def check_recipe(config: Config) -> None:
    """Raises `ValueError` for what the estimator or the outer optimizer rejects."""
    optimizer = l2o.learnable_sgd()
    _estimator(config, learn_optimizer(optimizer, make_family("quadratic10")))
    _outer_tx(config, _numbers(config))


def check_metric(config: Config, families: Sequence[TaskFamily]) -> None:
    """Raises `ValueError` where a family lacks the metric of the objective."""
    if config.objective_metric is None:
        return
    for family in families:
        if family.stream is not None:
            continue  # its data come later; compiling finds it
        aux = jax.eval_shape(functools.partial(_aux, family), family.data)
        check_known(f"metric of {family.name}", config.objective_metric, aux)


def _aux(family: TaskFamily, data: Any) -> dict[str, Any]:
    key = jax.random.key(0)
    task = family.task(family.sample(key), data)
    params, model_state = task.init(key)
    _, (_, aux) = task.loss(params, model_state, key, task.batch(key, "train"))
    return aux


class _Job(NamedTuple):
    """What one program of a run estimates, and on which data."""

    name: str
    estimator: MetaGradient
    data: Any
    stream: Stream | None


def _jobs(
    config: Config, optimizer: l2o.LearnedOptimizer, families: Sequence[TaskFamily]
) -> list[_Job]:
    """One per family, or one for all of them."""
    estimators = [
        _estimator(config, learn_optimizer(optimizer, family, config.rate_range))
        for family in families
    ]
    names = [family.name for family in families]
    datas = [family.data for family in families]
    streams = [family.stream for family in families]
    if config.families_per_step == "all" and len(families) > 1:
        estimators = [average(estimators)]
        names, datas = ["all"], [tuple(datas)]
        streams = [side_by_side(families)]
    if config.windows_per_step > 1:
        estimators = [accumulate(e, config.windows_per_step) for e in estimators]
    return [_Job(*job) for job in zip(names, estimators, datas, streams, strict=True)]


class _OuterLoop(NamedTuple):
    """How theta begins and is updated."""

    config: Config
    optimizer: l2o.LearnedOptimizer
    theta: Any
    given: bool  # theta was not drawn

    def tx(self, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        tx = _outer_tx(self.config, numbers)
        return _but_frozen(tx, self.optimizer, self.theta, self.config.frozen)

    def member_tx(
        self, hypers: Mapping[str, Any], numbers: Mapping[str, Any]
    ) -> optax.GradientTransformation:
        """That of a member of a population."""
        return optax.chain(self.tx(numbers), optax.scale(hypers["outer_lr_factor"]))

    def begin(
        self, theta: Any, tx: optax.GradientTransformation, key: jax.Array
    ) -> Outer:
        # A copy: both are given to the first step to be replaced.
        averages = self.config.theta_average is not None
        mean = jax.tree.map(jnp.copy, theta) if averages else ()
        return Outer(theta, tx.init(theta), jnp.int32(0), key, mean)


def _single(
    outer_loop: _OuterLoop,
    jobs: Sequence[_Job],
    numbers: dict[str, jax.Array],
    k_run: jax.Array,
    k_workers: Sequence[jax.Array],
) -> Recipe:
    """The recipe of one outer loop."""
    decay = outer_loop.config.theta_average

    def single_step(estimator):
        def step(outer, worker, data, numbers):
            one = make_outer_step(estimator, outer_loop.tx(numbers), decay)
            return one(outer, worker, data)

        return step

    parts = [
        Part(name, single_step(e), data, e.specs, stream)
        for name, e, data, stream in jobs
    ]
    theta = outer_loop.theta
    outer = outer_loop.begin(theta, outer_loop.tx(numbers), k_run)
    workers = [
        job.estimator.init(key, theta) for job, key in zip(jobs, k_workers, strict=True)
    ]
    return Recipe(parts, (outer, workers), numbers)


def _several(
    outer_loop: _OuterLoop,
    jobs: Sequence[_Job],
    numbers: dict[str, jax.Array],
    k_run: jax.Array,
    k_workers: Sequence[jax.Array],
) -> Recipe:
    """The recipe of a population of outer loops."""
    decay = outer_loop.config.theta_average
    population = _population(outer_loop, numbers, k_run)

    def member_step(estimator):
        def step(population, worker, data, numbers):
            def member(hypers):
                tx = outer_loop.member_tx(hypers, numbers)
                return make_outer_step(estimator, tx, decay)

            return make_population_step(member)(population, worker, data)

        return step

    parts = [
        Part(name, member_step(e), data, _after_members(e.specs), stream)
        for name, e, data, stream in jobs
    ]
    workers = [
        jax.vmap(job.estimator.init)(
            jax.random.split(key, outer_loop.config.population), population.outer.theta
        )
        for job, key in zip(jobs, k_workers, strict=True)
    ]
    return Recipe(parts, (population, workers), numbers)


def _population(
    outer_loop: _OuterLoop, numbers: dict[str, jax.Array], key: jax.Array
) -> Population:
    """Its first state."""
    config, optimizer, theta, given = outer_loop

    def member_init(hypers, key):
        # Chosen by the key, so that no two members begin alike.
        drawn = theta if given else optimizer.init_theta(key)
        return outer_loop.begin(drawn, outer_loop.member_tx(hypers, numbers), key)

    low, high = config.population_range
    factors = np.geomspace(low, high, config.population, dtype=np.float32)
    return make_population(member_init, {"outer_lr_factor": jnp.asarray(factors)}, key)


def _estimator(config: Config, problem: Bilevel) -> MetaGradient:
    maximum = config.objective_maximum
    normalize = None if maximum is None else clipped(maximum)
    if config.objective_log:
        normalize = logarithm(maximum or _LARGEST)
    objective = Objective(
        split=config.objective_split,
        metric=config.objective_metric,
        over=config.objective_over,
        samples=config.objective_samples,
        normalize=normalize,
    )
    schedule = log_uniform(
        *config.episode_length,
        start=config.episode_length_start,
        over=config.episode_growth,
    )
    return make_estimator(
        config.estimator,
        problem,
        schedule,
        config.estimator_options,
        particles=config.particles,
        truncation=config.truncation,
        std=config.std,
        max_offset=schedule.maximum,
        objective=objective,
    )


def _numbers(config: Config) -> dict[str, Any]:
    return {
        "learning_rate": config.outer_lr,
        "warmup": config.outer_warmup,
        "steps": config.outer_steps,
        "clip": config.outer_clip,
    }


def _outer_tx(
    config: Config, numbers: Mapping[str, Any]
) -> optax.GradientTransformation:
    return outer_optimizer(
        **numbers, name=config.outer_optimizer, options=config.outer_options
    )


def _but_frozen(
    tx: optax.GradientTransformation,
    optimizer: l2o.LearnedOptimizer,
    theta: Any,
    names: Sequence[str],
) -> optax.GradientTransformation:
    """`tx` for what is trainable: weight decay moves what has no gradient, too.

    Raises:
      ValueError: theta has no part of one of the names.
    """
    for name in names:
        if jax.tree.all(l2o.trainable(optimizer._replace(frozen=(name,)), theta)):
            paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(theta)]
            parts = {jax.tree_util.keystr(p, simple=True, separator="/") for p in paths}
            raise ValueError(
                f"Config.frozen: theta has no part {name!r}; its parts are "
                f"{', '.join(sorted(parts))}"
            )
    if not optimizer.frozen:
        return tx
    mask = l2o.trainable(optimizer, theta)
    return optax.partition({True: tx, False: optax.set_to_zero()}, mask)


def _after_members(specs: Any) -> Any:
    return jax.tree.map(
        lambda spec: PartitionSpec(None, *spec),
        specs,
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )
