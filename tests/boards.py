"""Evaluations made up for tests: losses that fall exponentially, apart by seed."""

import dataclasses

import numpy as np

from l2o.meta_train.evaluation import Board, Protocol, Result
from l2o.meta_train.evaluation._board import Contestant
from l2o.meta_train.evaluation._timing import Timing

TASKS = ("easy", "hard", "with-accuracy")
PROTOCOL = Protocol("mine", 3, 100, 3, 10, 2)
RATES = (0.001, 0.003, 0.0003)
HOSTILE = '<script>alert("1")</script>'
RECORDS = [
    {"step": i, "family": f"family{i % 2}", "meta_loss": 1 / (1 + i)}
    for i in range(1, 30)
]


def result(name, task, rate, speed, points=11, learned=False, seeds=3):
    """The higher the speed, the lower the loss at the end."""
    t = np.arange(points)[None] / 10
    loss = (1 + 0.02 * np.arange(seeds)[:, None]) * (0.1 + np.exp(-speed * t))
    metrics = {"loss": loss}
    if task == "with-accuracy":
        metrics["accuracy"] = 1 - loss / 2
    protocol = PROTOCOL._replace(steps=10 * (points - 1), seeds=seeds)
    setting = {
        "version": 1,
        "task": task,
        "identity": {"name": name},
        "rate": rate,
        **protocol._asdict(),
    }
    return Result(
        setting=setting,
        entrant=name,
        learned=learned,
        curves=dict.fromkeys(("train", "outer_valid", "test"), metrics),
        state_bytes=8.0,
        parameters=10,
        seconds=1e-3,
        origin={"l2o": "0.1", "time": "2026-01-01T00:00:00+00:00"},
    )


def contestant(name, speed, rates, learned=False, card=None, tasks=TASKS, seeds=3):
    """One speed, or one per task."""
    speeds = speed if isinstance(speed, dict) else dict.fromkeys(tasks, speed)
    trials = {
        task: tuple(
            result(
                name,
                task,
                rate,
                speeds[task] * (1 - 0.1 * i),
                learned=learned,
                seeds=seeds,
            )
            for i, rate in enumerate(rates)
        )
        for task in tasks
    }
    return Contestant(name, learned, "learning_rate", trials, None, None, card)


def card(name):
    """Of weights that were meta-trained."""
    trained = {
        "outer_steps": 10,
        "inner_steps": 1000,
        "seconds": 3.0,
        "task_families": ["mlp"],
    }
    return {"optimizer": {"name": name}, "meta_parameters": 197, "card": trained}


def lost(one, tasks, seeds=slice(None)):
    """The contestant with runs that are not finite from the middle on."""
    trials = dict(one.trials)
    for task in tasks:
        changed = []
        for found in trials[task]:
            curves = {s: {"loss": x["loss"].copy()} for s, x in found.curves.items()}
            for metrics in curves.values():
                metrics["loss"][seeds, 5:] = np.nan
            changed.append(dataclasses.replace(found, curves=curves))
        trials[task] = tuple(changed)
    return one._replace(trials=trials)


def board_of(contestants, tasks=TASKS, seeds=3, tuning="task", **fields):
    """An evaluation of them."""
    long = {
        t: tuple(result("adam", t, r, 3.0, 31, seeds=seeds) for r in RATES)
        for t in tasks
    }
    return Board(
        PROTOCOL._replace(seeds=seeds),
        tuning,
        "test",
        tuple(tasks),
        {x.name: x for x in contestants},
        long,
        **fields,
    )


def a_board():
    """Five optimizers, of which one diverges once and one has a hostile name."""
    everyone = [
        contestant("adam", 3.0, RATES),
        contestant("fast", 5.0, (None,), learned=True, card=card(HOSTILE)),
        contestant(HOSTILE, 2.0, (None,), learned=True),
        lost(contestant("sgd", 1.0, RATES[:1]), ["hard"], 1),
        contestant("lion", 3.5, RATES),
    ]
    return board_of(
        everyone,
        timings={"fast": Timing(2.5, 2.4, 2.6, 40, 10)},
        notes=("a note & more",),
    )
