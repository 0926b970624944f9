"""One evaluation: entrants on the tasks of a suite, beside tuned Adam."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from l2o.tasks import TaskFamily, TaskSpec, task_specs
from l2o.tasks.suites import Suite, suites

from .._config import Evaluation
from ._baselines import every_baseline
from ._board import REFERENCE, Board, Contestant
from ._entrants import Entrant, entrant, of_transformation
from ._runs import Job, Protocol, params_of, run_jobs
from ._scores import final
from ._store import Result, Store
from ._timing import Timing, read_timings, time_updates, timing_key, write_timings


def evaluate(
    config: Evaluation = Evaluation(),  # noqa: B008  frozen
    *,
    own: Mapping[str, optax.GradientTransformation] | None = None,
    entrants: Sequence[Entrant] = (),
    families: Sequence[TaskFamily] | None = None,
    store: Store | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Board:
    """Runs what a store does not have yet of an evaluation, and returns all of it.

    Every entrant trains the same tasks from the same initial parameters on the same
    batches, seed by seed. Who has a rate is tuned as `config` says, by the loss on the
    split `outer_valid`; all numbers are of other splits.

    Args:
      config: optimizers, suite, budget.
      own: optax transformations of your own by name, nothing tuned; they are handed
        `value`.
      entrants: further ones.
      families: in place of `config.suite`: your own.
      store: where results are looked for and kept; by default nowhere but in what came
        with the package.
      on_progress: called with (jobs finished, jobs in all); a job is an entrant on a
        task.

    Raises:
      ValueError: an unknown optimizer, or two of one name; steps that are no multiple
        of `config.eval_every`.

    Example:
      >>> import optax
      >>> from l2o.meta_train import Evaluation, evaluate
      >>> config = Evaluation(suite="quadratic10", steps=50, seeds=2, adam_horizon=1)
      >>> board = evaluate(config, own={"mine": optax.sgd(0.1)})
      >>> board.chosen("mine", "quadratic10").curves["train"]["loss"].shape
      (2, 3)
    """
    suite = suite_of(config.suite)
    names = config.optimizers
    if "all" in names:
        names = (*(x for x in names if x != "all"), *every_baseline())
    entering = [
        *map(entrant, dict.fromkeys(names)),
        *(of_transformation(name, tx) for name, tx in (own or {}).items()),
        *entrants,
    ]
    known = [x.name for x in entering]
    if REFERENCE not in known:
        entering.insert(0, entrant(REFERENCE))
    if twice := sorted({x for x in known if known.count(x) > 1}):
        raise ValueError(f"two optimizers are called {', '.join(twice)}: rename one")

    specs: Mapping[str, TaskSpec | TaskFamily]
    if families is None:
        wanted = config.tasks or suite.tasks
        specs = {task: spec for task, spec in suite.tasks.items() if task in wanted}
    else:
        specs = {family.name: family for family in families}
    steps = config.steps or suite.steps
    if steps % config.eval_every:
        raise ValueError(
            f"the {steps} steps of {suite.name} are no multiple of eval_every "
            f"({config.eval_every}): change that, or give steps"
        )
    protocol = Protocol(
        suite.name if families is None else "your own",
        suite.version if families is None else 0,
        steps,
        config.seeds,
        config.eval_every,
        config.eval_batches,
    )
    trials = 1 if config.tuning == "none" else config.trials
    jobs = [
        Job(x, task, spec, x.trials(trials))
        for x in entering
        for task, spec in specs.items()
    ]
    adam = entrant(REFERENCE)
    far = protocol._replace(steps=steps * config.adam_horizon)
    long = [Job(adam, t, s, adam.trials(config.trials)) for t, s in specs.items()]
    sets = _tuning_jobs(config, entering)
    total, done = len(jobs) + len(long) + len(sets), 0
    on_progress(done, total)

    def count(job: Job, ran: int) -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    store = store or Store(None)
    rates = _set_rates(run_jobs(sets, _set_protocol(config), store, on_progress=count))
    found = run_jobs(jobs, protocol, store, on_progress=count)
    timings = _timings(entering, specs, found, store)
    envelopes = run_jobs(long, far, store, on_progress=count)
    return Board(
        protocol,
        config.tuning,
        suite.split,
        tuple(specs),
        {
            x.name: Contestant(
                x.name,
                x.learned,
                x.tuned,
                _by_task([r for r in found if r.entrant == x.name]),
                rates.get(x.name),
                x.source,
                x.card,
            )
            for x in entering
        },
        _by_task(envelopes),
        timings,
    )


def _timings(
    everyone: Sequence[Entrant],
    specs: Mapping[str, TaskSpec | TaskFamily],
    results: Sequence[Result],
    store: Store,
) -> dict[str, Timing]:
    """On the largest of the tasks' models; what is known is not timed again."""
    largest = max(results, key=lambda x: x.parameters)
    known = read_timings(store.folder)
    keys = {x.name: timing_key(x, largest.parameters) for x in everyone}
    found = {x.name: known[k] for x in everyone if (k := keys[x.name]) in known}
    rest = [x for x in everyone if x.name not in found]
    if rest:
        spec = specs[largest.task]
        family = spec if isinstance(spec, TaskFamily) else spec.family()
        shapes = jax.eval_shape(params_of(family), jax.random.key(0), family.data)
        params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        new = time_updates(rest, params)
        if store.folder is not None:
            kept = {k: new[x] for x in new if (k := keys[x]) is not None}
            write_timings(store.folder, kept)
        found |= new
    return found


def suite_of(name: str) -> Suite:
    """The suite of that name, or one of what else `task_specs` finds under it."""
    known = suites()
    if name in known:
        return known[name]
    return Suite(Path(name).stem, 0, "", task_specs(name))


def _by_task(results: Sequence[Result]) -> dict[str, tuple[Result, ...]]:
    tasks = dict.fromkeys(x.task for x in results)
    return {task: tuple(x for x in results if x.task == task) for task in tasks}


def _tuning_jobs(config: Evaluation, everyone: Sequence[Entrant]) -> list[Job]:
    if config.tuning != "set":
        return []
    specs = suite_of(config.tuning_set).tasks
    return [
        Job(x, task, spec, x.trials(config.trials))
        for x in everyone
        if x.space
        for task, spec in specs.items()
    ]


def _set_protocol(config: Evaluation) -> Protocol:
    suite = suite_of(config.tuning_set)
    steps = config.steps or suite_of(config.suite).steps
    rest = config.seeds, config.eval_every, config.eval_batches
    return Protocol(suite.name, suite.version, steps, *rest)


def _set_rates(results: Sequence[Result]) -> dict[str, float | None]:
    """Per entrant the rate with the lowest mean rank over tasks."""
    chosen: dict[str, float | None] = {}
    for name in dict.fromkeys(x.entrant for x in results):
        tasks = _by_task([x for x in results if x.entrant == name])
        losses = np.array(
            [
                [np.mean(final(x.curves["outer_valid"]["loss"])) for x in trials]
                for trials in tasks.values()
            ]
        )
        losses = np.where(np.isfinite(losses), losses, np.inf)
        ranks = np.mean(stats.rankdata(losses, axis=1), 0)
        chosen[name] = next(iter(tasks.values()))[int(np.argmin(ranks))].rate
    return chosen
