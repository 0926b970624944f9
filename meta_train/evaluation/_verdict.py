"""What an evaluation shows, in plain words, and what it cannot tell."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from ._aggregate import p_value
from ._board import REFERENCE, Board
from ._leaderboard import Row
from ._scores import diverged, final

LEVEL = 0.05  # below this p-value a difference is said to be more than chance
_NAMED = 6  # of a longer list the rest is counted


class Verdict(NamedTuple):
    """Sentences for the top of a page.

    Attributes:
      lead: the one sentence to remember.
      findings: what else was found, the most important first.
      limits: what these results cannot tell.
      facts: (term, text) of what was compared.
    """

    lead: str
    findings: tuple[str, ...]
    limits: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


def verdict(board: Board, rows: Sequence[Row]) -> Verdict:
    """Says which optimizer is ahead, by how much, and how sure that is.

    Args:
      board: of `evaluate` or `load_board`.
      rows: its `leaderboard`; empty for a board without Adam.
    """
    facts = _facts(board)
    if REFERENCE not in board.contestants:
        lead = "There is no verdict, because Adam did not take part."
        why = "Every score is a share of what Adam gains. Evaluate again with Adam."
        return Verdict(lead, (why,), (), facts)
    silent = silent_tasks(board)
    if len(silent) == len(board.tasks):
        ruined = len(ruined_tasks(board)) == len(board.tasks)
        lead = "There is no verdict: " + (
            "every run diverged."
            if ruined
            else "Adam did not lower the loss on any task."
        )
        why = "Every score is a share of what Adam gains, so every score is 0."
        return Verdict(lead, (why,), (), facts)
    if len(rows) == 1:
        lead = "Only Adam took part, so there is nothing to compare it with."
        return Verdict(lead, (), _limits(board, rows), facts)
    return Verdict(
        _lead(board, rows), _findings(board, rows), _limits(board, rows), facts
    )


def reference_words(board: Board) -> str:
    """What Adam is called, which depends on how it was tuned."""
    if not is_tuned(board, REFERENCE):
        return "Adam at its default rate"
    return "tuned Adam" if board.tuning == "task" else "Adam with one tuned rate"


def is_tuned(board: Board, name: str) -> bool:
    """Whether a rate of it was chosen among several."""
    trials = board.contestants[name].trials.values()
    return board.tuning != "none" and max(map(len, trials)) > 1


def relation(board: Board, name: str, rival: str) -> Literal["better", "worse", "open"]:
    """Whether two optimizers differ by more than chance, over tasks.

    The direction is that of the signed ranks that the p-value is of.
    """
    mine, theirs = board.scores(name), board.scores(rival)
    if not p_value(mine, theirs) < LEVEL:
        return "open"
    gap = np.mean(mine, 0) - np.mean(theirs, 0)
    up = float(np.sum(np.sign(gap) * stats.rankdata(np.abs(gap))))
    return "better" if up > 0 else "worse"


def ruined_tasks(board: Board) -> list[str]:
    """Tasks on which every run of every optimizer diverged."""

    def lost(name: str, task: str) -> bool:
        return bool(np.all(diverged(board.chosen(name, task).curves["train"]["loss"])))

    return [t for t in board.tasks if all(lost(n, t) for n in board.contestants)]


def silent_tasks(board: Board) -> list[str]:
    """Tasks on which Adam gains nothing, so that every score is 0."""

    def gain(task: str) -> float:
        loss = board.chosen(REFERENCE, task).curves[board.split]["loss"]
        return float(np.mean(loss[:, 0]) - np.mean(final(loss)))

    return [task for task in board.tasks if not gain(task) > 0]


def listed(names: Sequence[str]) -> str:
    """Such as "a, b and c"; of many the first ones and how many more."""
    shown = list(names[:_NAMED])
    if len(names) > _NAMED:
        shown.append(f"{len(names) - _NAMED} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _lead(board: Board, rows: Sequence[Row]) -> str:
    best, adam = _best(rows), reference_words(board)
    if best.name != REFERENCE:
        how = "" if is_tuned(board, best.name) else ", untuned,"
        return f"{best.name}{how} has the highest score of {len(rows)} optimizers."
    if len(rows) == 2:
        (other,) = (row for row in rows if row.name != REFERENCE)
        return f"{other.name} has no higher score than {adam}."
    return (
        f"None of the {len(rows) - 1} other optimizers has a higher score than {adam}."
    )


def _best(rows: Sequence[Row]) -> Row:
    """The first, or Adam where it shares the first place."""
    ties = [row for row in rows if not row.score.value < rows[0].score.value]
    return next((row for row in ties if row.name == REFERENCE), rows[0])


def _findings(board: Board, rows: Sequence[Row]) -> tuple[str, ...]:
    adam = reference_words(board)
    others = [row for row in rows if row.name != REFERENCE]
    against = {row.name: relation(board, row.name, REFERENCE) for row in others}
    first = others[0]
    found = [_against_adam(first, against[first.name], adam), *_costs(first)]
    untuned = [row for row in others if not is_tuned(board, row.name)]
    if untuned and untuned[0] is not first:
        found.append(
            f"The best untuned optimizer is {untuned[0].name}. "
            + _against_adam(untuned[0], against[untuned[0].name], adam, "It")
        )
    rest = [row.name for row in others if row is not first]
    for words, kind in (
        ("Also better than {} by more than chance: {}.", "better"),
        ("Statistically indistinguishable from {}: {}.", "open"),
        ("Worse than {} by more than chance: {}.", "worse"),
    ):
        if names := [name for name in rest if against[name] == kind]:
            also = (
                words
                if against[first.name] == "better"
                else words.replace("Also b", "B")
            )
            found.append(also.format(adam, listed(names)))
    return tuple(found)


def _against_adam(row: Row, kind: str, adam: str, subject: str | None = None) -> str:
    wins, tasks = row.better
    sure = {
        "better": "A lead like this is unlikely to be chance.",
        "worse": "Counting how far apart they are, it is worse, by more than chance."
        if 2 * wins > tasks
        else "A gap like this is unlikely to be chance.",
        "open": "That can be chance: the two are statistically indistinguishable.",
    }[kind]
    count = f"{wins} of {tasks} tasks" if wins else f"none of {tasks} tasks"
    if tasks == 1:
        count = "the one task" if wins else "no task"
    return f"{subject or row.name} scores higher than {adam} on {count}. {sure}"


def _costs(row: Row) -> list[str]:
    """Steps, time and lost runs of one optimizer."""
    found = []
    speed, lost = row.speedup.value, row.diverged
    least = "at least " if row.censored >= 0.5 else ""
    if speed >= 1.005 or least:
        found.append(
            f"For the same training loss Adam needs {least}{speed:.2f} times as many "
            "steps, even with its best learning rate at every step (median over runs)."
        )
    elif 0 < speed < 0.995:
        found.append(
            f"For the same training loss Adam needs only {speed:.2f} times as many "
            "steps, with its best learning rate at every step (median over runs)."
        )
    if row.update_time is not None:
        found.append(
            f"One of its updates takes {row.update_time:.1f} times as long as Adam's, "
            "without the gradient, which takes both the same time."
        )
    if lost[0]:
        found.append(f"{lost[0]} of its {lost[1]} runs diverged.")
    return found


def _limits(board: Board, rows: Sequence[Row]) -> tuple[str, ...]:
    found = []
    best, tasks, seeds = _best(rows), len(board.tasks), board.protocol.seeds
    few = 2 / 2**tasks > LEVEL  # the lowest p-value that so many tasks can have
    if best.name != REFERENCE and not few:
        rest = [row.name for row in rows if row.name not in (best.name, REFERENCE)]
        if names := [n for n in rest if relation(board, best.name, n) == "open"]:
            found.append(
                f"Which is best is open: {best.name} is statistically "
                f"indistinguishable from {listed(names)}."
            )
    if len(rows) > 1 and few:
        found.append(
            f"With {_count(tasks, 'task')} no difference can be told from chance, "
            "however large. The test needs at least six tasks."
        )
    if seeds == 1:
        found.append(
            "Every task was run with one seed. How far results vary from seed to seed "
            "is unknown, and there are no intervals."
        )
    else:
        found.append(
            f"Every task was run with {seeds} seeds. Intervals are about other seeds "
            "on these tasks, not about other tasks."
        )
    ruined, silent = ruined_tasks(board), silent_tasks(board)
    if ruined:
        found.append(f"Every run diverged on {listed(ruined)}. Every score there is 0.")
    if rest := [task for task in silent if task not in ruined]:
        found.append(
            f"Adam did not lower the loss on {listed(rest)}. Every score there is 0."
        )
    if edges := sum(board.at_edge(REFERENCE, task) for task in board.tasks):
        found.append(
            f"On {_count(edges, 'task')} Adam's best rate is the smallest or largest "
            "that was tried. A wider search could make Adam better."
        )
    return tuple(found)


def _facts(board: Board) -> tuple[tuple[str, str], ...]:
    p = board.protocol
    tuned = [name for name in board.contestants if is_tuned(board, name)]
    rest = [name for name in board.contestants if name not in tuned]
    version = f", version {p.suite_version}" if p.suite_version else ""
    found = [
        ("Tasks", f"{len(board.tasks)} ({p.suite}{version})"),
        ("Steps per run", str(p.steps)),
        ("Seeds per task", str(p.seeds)),
    ]
    if tuned:
        most = max(len(x) for n in tuned for x in board.contestants[n].trials.values())
        how = "on each task" if board.tuning == "task" else "for all tasks"
        found.append(("Tuned", f"{listed(tuned)}: best of {most} rates {how}"))
    if rest:
        names = listed(rest) if len(rest) <= 2 else f"{len(rest)} optimizers"
        found.append(("Untuned", names))
    return tuple(found)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}s" if n > 1 else f"one {noun}"
