"""What the page says in words: right also where little can be said."""

import dataclasses

import numpy as np
import pytest
from boards import RATES, board_of, contestant, lost

from l2o.meta_train.evaluation import leaderboard
from l2o.meta_train.evaluation._timing import Timing
from l2o.meta_train.evaluation._verdict import listed, relation, verdict

MANY = tuple(f"task{i}" for i in range(8))


def _said(board):
    rows = leaderboard(board) if "adam" in board.contestants else []
    return verdict(board, rows)


def _many(names, **settings):
    """Optimizers by name, with their speeds, on eight tasks; Adam tries three rates."""
    return board_of(
        [
            contestant(
                name,
                speed,
                RATES if name in ("adam", "tuned") else (None,),
                learned=name not in ("adam", "tuned"),
                tasks=MANY,
                seeds=settings.get("seeds", 3),
            )
            for name, speed in names.items()
        ],
        MANY,
        **settings,
    )


def test_the_best_is_named_with_how_often_and_how_surely_it_is_ahead():
    board = _many({"adam": 3.0, "mine": 5.0, "slow": 1.0})
    found = _said(board)
    assert found.lead == "mine, untuned, has the highest score of 3 optimizers."
    assert found.findings[0] == (
        "mine scores higher than tuned Adam on 8 of 8 tasks. "
        "A lead like this is unlikely to be chance."
    )
    assert found.findings[-1] == "Worse than tuned Adam by more than chance: slow."
    assert dict(found.facts) == {
        "Tasks": "8 (mine, version 3)",
        "Steps per run": "100",
        "Seeds per task": "3",
        "Tuned": "adam: best of 3 rates on each task",
        "Untuned": "mine and slow",
    }
    text = " ".join(found.limits)
    assert "3 seeds" in text and "open" not in text and "cannot" not in text


def test_what_chance_can_explain_is_said_to_be_open():
    up_and_down = {task: 3.0 + (0.9 if i % 2 else -0.2) for i, task in enumerate(MANY)}
    found = _said(_many({"adam": 3.0, "mine": up_and_down, "twin": up_and_down}))
    assert found.lead == "mine, untuned, has the highest score of 3 optimizers."
    assert found.findings[0] == (
        "mine scores higher than tuned Adam on 4 of 8 tasks. That can be chance: "
        "the two are statistically indistinguishable."
    )
    assert "Statistically indistinguishable from tuned Adam: twin." in found.findings


def test_the_best_and_another_may_be_indistinguishable():
    board = _many({"adam": 3.0, "mine": 5.0, "twin": 5.0})
    assert relation(board, "mine", "twin") == "open"
    (open_,) = (x for x in _said(board).limits if "best is open" in x)
    assert open_.endswith("mine is statistically indistinguishable from twin.")


def test_the_direction_is_that_of_the_test():
    board = _many({"adam": 3.0, "mine": 5.0})
    assert relation(board, "mine", "adam") == "better"
    assert relation(board, "adam", "mine") == "worse"


def test_a_tuned_one_ahead_leaves_room_for_the_best_untuned():
    found = _said(_many({"adam": 3.0, "tuned": 6.0, "mine": 5.0}))
    assert found.lead == "tuned has the highest score of 3 optimizers."
    (untuned,) = (x for x in found.findings if x.startswith("The best untuned"))
    assert untuned.startswith("The best untuned optimizer is mine. It scores higher")
    assert dict(found.facts)["Tuned"].startswith("adam and tuned: ")


def test_nobody_is_ahead_of_adam():
    board = _many({"adam": 3.0, "slow": 1.0, "slower": 0.5})
    assert _said(board).lead == (
        "None of the 2 other optimizers has a higher score than tuned Adam."
    )
    board = _many({"adam": 3.0, "slow": 1.0})
    found = _said(board)
    assert found.lead == "slow has no higher score than tuned Adam."
    assert found.findings[0] == (
        "slow scores higher than tuned Adam on none of 8 tasks. "
        "A gap like this is unlikely to be chance."
    )


def test_the_same_as_adam_is_not_above_it():
    tuned = _many({"adam": 3.0})
    twin = tuned.contestants["adam"]._replace(name="twin")
    board = tuned._replace(contestants={"twin": twin, **tuned.contestants})
    assert _said(board).lead == "twin has no higher score than tuned Adam."


def test_adam_alone():
    found = _said(_many({"adam": 3.0}))
    assert found.lead.startswith("Only Adam took part")
    assert found.findings == () and len(found.limits) == 1


def test_without_adam():
    board = _many({"mine": 3.0, "other": 5.0})
    found = _said(board)
    assert found.lead == "There is no verdict, because Adam did not take part."
    assert "highest" not in " ".join((found.lead, *found.findings, *found.limits))


def test_one_seed():
    found = _said(_many({"adam": 3.0, "mine": 5.0}, seeds=1))
    (said,) = (x for x in found.limits if "seed" in x)
    assert said.startswith("Every task was run with one seed.")


@pytest.mark.parametrize("count", (1, 4, 5, 6))
def test_few_tasks_cannot_show_a_difference(count):
    tasks = MANY[:count]
    everyone = [
        contestant("adam", 3.0, RATES, tasks=tasks),
        contestant("mine", 5.0, (None,), tasks=tasks),
    ]
    board = board_of(everyone, tasks)
    found = _said(board)
    few = [x for x in found.limits if "at least six" in x]
    assert len(few) == (count < 6)
    assert ("can be chance" in found.findings[0]) == (count < 6)
    assert (relation(board, "mine", "adam") == "open") == (count < 6)
    if count == 1:
        assert "on the one task." in found.findings[0]
        assert "With one task" in few[0]


def test_a_task_on_which_everything_diverged():
    board = _many({"adam": 3.0, "mine": 5.0})
    everyone = [lost(x, MANY[:1]) for x in board.contestants.values()]
    board = board._replace(contestants={x.name: x for x in everyone})
    found = _said(board)
    assert "Every run diverged on task0. Every score there is 0." in found.limits
    assert "mine scores higher than tuned Adam on 7 of 8 tasks." in found.findings[0]
    assert "3 of its 24 runs diverged." in found.findings


def test_a_task_on_which_adam_alone_diverged():
    board = _many({"adam": 3.0, "mine": 5.0})
    adam = lost(board.contestants["adam"], MANY[:2])
    board = board._replace(contestants={**board.contestants, "adam": adam})
    (said,) = (x for x in _said(board).limits if "did not lower" in x)
    assert said.startswith("Adam did not lower the loss on task0 and task1.")


def test_everything_diverged_everywhere():
    board = _many({"adam": 3.0, "mine": 5.0})
    everyone = [lost(x, MANY) for x in board.contestants.values()]
    board = board._replace(contestants={x.name: x for x in everyone})
    found = _said(board)
    assert found.lead == "There is no verdict: every run diverged."
    adam = lost(_many({"adam": 3.0}).contestants["adam"], MANY)
    board = _many({"adam": 3.0, "mine": 5.0})
    board = board._replace(contestants={**board.contestants, "adam": adam})
    assert _said(board).lead.endswith("Adam did not lower the loss on any task.")


@pytest.mark.parametrize(
    ("tuning", "rates", "words"),
    (
        ("task", RATES, "tuned Adam"),
        ("task", RATES[:1], "Adam at its default rate"),
        ("none", RATES, "Adam at its default rate"),
        ("set", RATES, "Adam with one tuned rate"),
    ),
)
def test_adam_is_called_what_it_is(tuning, rates, words):
    adam = contestant("adam", 3.0, rates, tasks=MANY)._replace(rate=rates[0])
    mine = contestant("mine", 5.0, (None,), tasks=MANY)
    found = _said(board_of([adam, mine], MANY, tuning=tuning))
    assert f"higher than {words} on 8 of 8" in found.findings[0]
    assert ("Tuned" in dict(found.facts)) == ("tuned" in words)


def test_costs_are_told_with_the_gain():
    board = _many({"adam": 3.0, "mine": 5.0})
    board = board._replace(timings={"mine": Timing(2.5, 2.4, 2.6, 40, 10)})
    (row,) = (x for x in leaderboard(board) if x.name == "mine")
    found = _said(board).findings
    least = "at least " if row.censored >= 0.5 else ""
    assert f"Adam needs {least}{row.speedup.value:.2f} times as many steps" in found[1]
    assert found[2].startswith("One of its updates takes 2.5 times as long as Adam's")
    slow = _many({"adam": 3.0, "mine": 1.0})
    assert "Adam needs only 0." in _said(slow).findings[1]


def test_an_edge_of_what_was_tried_is_told():
    board = _many({"adam": 3.0, "mine": 5.0})
    adam = board.contestants["adam"]
    trials = {
        task: tuple(
            dataclasses.replace(x, setting={**x.setting, "rate": rate})
            for x, rate in zip(found, (0.003, 0.001, 0.0003))
        )
        for task, found in adam.trials.items()
    }
    contestants = {**board.contestants, "adam": adam._replace(trials=trials)}
    text = " ".join(_said(board._replace(contestants=contestants)).limits)
    assert "On 8 tasks Adam's best rate is the smallest or largest" in text
    assert "smallest or largest" not in " ".join(_said(board).limits)


def test_long_lists_are_cut():
    assert listed(["a"]) == "a" and listed(["a", "b"]) == "a and b"
    assert listed(list("abcdef")) == "a, b, c, d, e and f"
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"


def test_significance_is_not_a_matter_of_the_number_of_wins():
    """Small wins on most tasks, and large losses on the rest."""
    speeds = dict.fromkeys(MANY[:5], 3.02) | dict.fromkeys(MANY[5:], 0.3)
    board = _many({"adam": 3.0, "mine": speeds})
    row = next(x for x in leaderboard(board) if x.name == "mine")
    assert row.better[0] == 5 and relation(board, "mine", "adam") != "better"
    assert "unlikely to be chance" not in _said(board).findings[0]
    assert np.isfinite(row.p)
