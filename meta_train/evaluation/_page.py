"""One self-contained HTML page about an evaluation and a meta-training run."""

import collections
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from l2o.files import plain, write_json

from ._aggregate import Interval
from ._board import REFERENCE, Board
from ._figures import (
    Picture,
    curves_figure,
    meta_training_figure,
    names_in_picture,
    one_rate_figure,
    profile_figure,
    sweep_figure,
)
from ._html import Cell, Page
from ._leaderboard import Row, claim, leaderboard
from ._scores import diverged, final
from ._tables import TASK_HEADER, interval_text, median_range, spread, task_rows
from ._verdict import LEVEL, is_tuned, reference_words, verdict

_FIRST = 12  # rows of the leaderboard; all of them are in the table below it
_NONE = Cell("–", -1.0)


def write_page(
    path: Path,
    board: Board | None,
    *,
    records: Sequence[dict[str, Any]] = (),
    behaviour: Mapping[str, Sequence[Picture]] | None = None,
    tradeoffs: Sequence[Picture] = (),
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page, `leaderboard.json` and `figures/` beside it; returns its path.

    The same input gives the same bytes, and the page needs no network.

    Args:
      path: of the HTML file.
      board: an evaluation, if there is one.
      records: of `metrics.jsonl`, for the meta-training curve.
      behaviour: per optimizer, pictures of what its rule does.
      tradeoffs: pictures of a study of trade-offs.
      card: of what was meta-trained, where no board has it.
    """
    page = Page(path)
    if board is not None:
        _evaluation(page, board)
    if records:
        with page.section("Meta-training"):
            page.gallery([("meta_training", meta_training_figure(records))])
    cards = {}
    if board is not None:
        every = board.contestants.values()
        cards = {x.name: x.card for x in every if x.card is not None}
    elif card is not None:
        cards = {card["optimizer"]["name"] or "an optimizer of your own": card}
    pictures = behaviour or {}
    names = list(dict.fromkeys((*cards, *pictures)))
    if names:
        with page.section("Learned optimizers"):
            for name in names:
                _learned(page, name, cards.get(name), pictures.get(name, ()), names)
    if tradeoffs:
        with page.section("Trade-offs"):
            page.gallery([(f"tradeoffs_{i}", x) for i, x in enumerate(tradeoffs)])
    if board is not None:
        _protocol(page, board)
        return page.write(f"Evaluation on {board.protocol.suite}")
    return page.write("Meta-training" if records else "Report")


def _evaluation(page: Page, board: Board) -> None:
    rows = leaderboard(board) if REFERENCE in board.contestants else []
    claims = [
        {"name": name, "against": rival, **claim(board, name, rival)}
        for name, rival in _rivals(rows)
    ]
    content: dict[str, Any] = {
        "protocol": board.protocol._asdict(),
        "tuning": board.tuning,
        "rows": [plain(row) for row in rows],
        "claims": claims,
    }
    write_json(page.path.with_name("leaderboard.json"), content)
    _verdict(page, board, rows, claims)
    if rows:
        names = names_in_picture(rows)
        _leaderboard(page, board, rows, names)
        _tasks(page, board, names, len(rows))


def _verdict(
    page: Page, board: Board, rows: Sequence[Row], claims: Sequence[Mapping[str, Any]]
) -> None:
    found = verdict(board, rows)
    with page.section("Verdict"):
        with page.box("verdict"):
            page.paragraph(found.lead, "lead")
            with page.box("columns"):
                for title, texts in (
                    ("What was found", found.findings),
                    ("What this cannot tell", found.limits),
                ):
                    if texts:
                        with page.box("column"):
                            page.heading(title)
                            page.items(texts)
        page.terms(found.facts, "facts")
        if claims:
            with page.folded("The tests behind the verdict"):
                page.paragraph(
                    "A p-value is of a Wilcoxon signed-rank test over tasks, of the "
                    "means over seeds, two-sided. Below "
                    f"{LEVEL} the verdict speaks of more than chance. The p-values are "
                    "not corrected for the number of comparisons."
                )
                header = ("optimizer", "against", "better on", "probability", "p")
                page.table(
                    header,
                    [_claim_cells(x) for x in claims],
                    "Learned optimizers against Adam and the best baseline",
                )


def _leaderboard(
    page: Page, board: Board, rows: Sequence[Row], names: Sequence[str]
) -> None:
    first = [row for i, row in enumerate(rows) if i < _FIRST or row.name == REFERENCE]
    caption = f"The first {len(first)} of {len(rows)} optimizers, the best score first"
    if len(first) == len(rows):
        caption = "All optimizers, the best score first"
    with page.section("Leaderboard"):
        ends = [x for row in first for x in row.score] + [1.0]
        cells = [_cells(board, row, (min(ends), max(ends))) for row in first]
        page.table(_HEADER, cells, caption)
        with page.folded("What the columns mean"):
            page.terms(_terms(board, rows))
        with page.folded("All columns, all optimizers"):
            every = [_all_cells(board, row) for row in rows]
            page.table(_FULL_HEADER, every, "All columns")
        pictures = [("performance_profile", profile_figure(board, names))]
        one = one_rate_figure(board, names)
        if one is not None:
            pictures.append(("one_rate", one))
        page.gallery(pictures)


def _tasks(page: Page, board: Board, names: Sequence[str], count: int) -> None:
    losses = ("train loss", f"{board.split} loss")
    header = ("task", "optimizer", "rate", *losses, "accuracy", "score", "speed-up")
    with page.section("Tasks"):
        if len(names) < count:
            page.paragraph(
                f"Shown are {len(names)} of {count} optimizers: learned ones, Adam, "
                "and the best of the others."
            )
        pictures = [("learning_curves", curves_figure(board, names))]
        sweep = sweep_figure(board, names)
        if sweep is not None:
            pictures.append(("rates", sweep))
        page.gallery(pictures)
        with page.folded(f"Results per task, {len(names)} optimizers"):
            page.paragraph(
                "Final losses are medians over seeds, with the range. Scores and "
                "speed-ups are medians. A star marks a rate at the edge of what was "
                "tried."
            )
            cells = [_task_cells(board, x, task) for task in board.tasks for x in names]
            page.table(header, cells, "Results per task")
        for name, contestant in board.contestants.items():
            if contestant.learned:
                with page.folded(f"{name} beside {reference_words(board)}, per task"):
                    page.paragraph(
                        "Losses are of training: median over seeds, with the range. "
                        "“Reached” counts the seeds that got to Adam's final loss. "
                        "Where some did not, “Adam needs” is the share of the steps in "
                        "which Adam gets to theirs."
                    )
                    duels = [_duel_cells(row) for row in task_rows(board, name)]
                    caption = f"{name} beside {reference_words(board)}, training loss"
                    page.table(TASK_HEADER, duels, caption)


def _learned(
    page: Page,
    name: str,
    card: Mapping[str, Any] | None,
    pictures: Sequence[Picture],
    names: Sequence[str],
) -> None:
    """What is known of one rule; folded where there are several."""

    def content() -> None:
        if card is not None:
            page.paragraph(_about(card))
        page.gallery([(f"behaviour_{name}_{i}", x) for i, x in enumerate(pictures)])
        if card is not None:
            with page.folded("Its card"):
                page.verbatim(json.dumps(card, indent=2, sort_keys=True))

    if len(names) > 1:
        with page.folded(name, heading=True):
            content()
    else:
        page.heading(name)
        content()


_HEADER = ("optimizer", "score", "speed-up", "better than Adam", "p", "diverged")
_FULL_HEADER = (
    "optimizer",
    "score",
    "median score",
    "area",
    "speed-up",
    "better than Adam",
    "p",
    "probability of improvement",
    "diverged",
    "update / Adam",
    "step / Adam",
    "state, B/param",
    "trials",
    "good rates, decades",
)


def _terms(board: Board, rows: Sequence[Row]) -> list[tuple[str, str]]:
    horizon = next(iter(board.long.values()))[0].setting["steps"]
    times, split = horizon // board.protocol.steps, board.split
    adam = reference_words(board)
    return [
        (
            "Score",
            f"The gain in {split} loss over the gain of {adam}. 1 is as good as Adam, "
            "0 no better than no training; it is cut at 0 and 2. Interquartile mean "
            "over tasks and seeds. The line is the 95 % interval, the dashes are at 1.",
        ),
        ("Brackets", "95 % intervals of a bootstrap over seeds."),
        (
            "Speed-up",
            "The steps that Adam, with its best rate at every step, needs for the same "
            f"training loss, over the steps of the run; median. Adam ran for {times} "
            "times the steps. ≥ marks a lower bound.",
        ),
        ("Better than Adam", f"Tasks on which the mean score is above that of {adam}."),
        ("p", "Of a two-sided Wilcoxon signed-rank test of that, over tasks."),
        ("Diverged", "Runs that end not finite, or above where they began."),
        ("Median score", "The median of the scores over tasks and seeds."),
        ("Area", "The score of the area under the curve of the training loss."),
        (
            "Probability of improvement",
            "That a run is better than one of Adam's on the same task.",
        ),
        (
            "Update / Adam, step / Adam",
            "The time of an update alone, and of a whole step, over Adam's. Steps "
            "were timed on machines that did other things too.",
        ),
        ("State", "Bytes that the optimizer keeps per parameter."),
        (
            "Trials",
            f"Learning rates that were tried, {max(x.trials for x in rows)} at most.",
        ),
        (
            "Good rates",
            "Decades of neighbouring rates, of those tried, that end within 5 % of the "
            f"lowest {split} loss; mean over tasks.",
        ),
        (
            "A star",
            "On so many tasks the best rate is the smallest or largest that was tried.",
        ),
    ]


def _name_cell(board: Board, row: Row) -> Cell:
    kind = ["learned"] if row.learned else []
    tuned = f"{row.trials} rates tried" if is_tuned(board, row.name) else "untuned"
    edges = sum(board.at_edge(row.name, task) for task in board.tasks)
    star = f", *{edges}" if edges else ""
    return Cell(row.name, row.name, ", ".join([*kind, tuned]) + star)


def _interval_cell(
    board: Board,
    x: Interval,
    *,
    bound: str = "",
    range_: tuple[float, float] | None = None,
) -> Cell:
    """A value, its interval where more than one seed ran, and both drawn."""
    note = span = None
    if board.protocol.seeds > 1:
        note = interval_text(x).partition(" ")[2]
    if range_ is not None:
        low, high = range_
        width = max(high - low, 1e-9)
        at = [(v - low) / width for v in (x.low, x.value, x.high, 1.0)]
        span = (at[0], at[1], at[2], at[3])
    return Cell(f"{bound}{x.value:.2f}", x.value, note or "", span)


def _cells(board: Board, row: Row, ends: tuple[float, float]) -> list[Cell]:
    wins, tasks = row.better
    bound = "≥" if row.censored >= 0.5 else ""
    lost, runs = row.diverged
    adam = row.name == REFERENCE
    return [
        _name_cell(board, row),
        _interval_cell(board, row.score, range_=ends),
        _interval_cell(board, row.speedup, bound=bound),
        Cell("–", wins) if adam else Cell(f"{wins} of {tasks}", wins),
        Cell("–", row.p) if adam else Cell(f"{row.p:.2g}", row.p),
        Cell(f"{lost} of {runs}", lost),
    ]


def _all_cells(board: Board, row: Row) -> list[Cell]:
    name, score, speed, better, p, lost = _cells(board, row, (0.0, 2.0))
    update, decades = row.update_time, row.rate_range
    return [
        name,
        score._replace(span=None),
        _interval_cell(board, row.median_score),
        _interval_cell(board, row.area),
        speed,
        better,
        p,
        Cell(f"{row.improves:.2f}", row.improves),
        lost,
        _NONE if update is None else Cell(f"{update:.2f}", update),
        Cell(f"{row.step_time:.2f}", row.step_time),
        Cell(f"{row.state_bytes:.3g}", row.state_bytes),
        Cell(str(row.trials), row.trials),
        _NONE if decades is None else Cell(f"{decades:.2f}", decades),
    ]


def _rivals(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Each learned optimizer, with Adam and with the best of the other baselines."""
    others = [x.name for x in rows if not x.learned and x.name != REFERENCE]
    for row in rows:
        if row.learned:
            yield from ((row.name, rival) for rival in (REFERENCE, *others[:1]))


def _claim_cells(found: Mapping[str, Any]) -> list[Cell]:
    wins, tasks = found["tasks"]
    return [
        Cell(found["name"], found["name"]),
        Cell(found["against"], found["against"]),
        Cell(f"{wins} of {tasks}", wins),
        Cell(f"{found['improves']:.2f}", found["improves"]),
        Cell(f"{found['p']:.2g}", found["p"]),
    ]


def _task_cells(board: Board, name: str, task: str) -> list[Cell]:
    chosen = board.chosen(name, task)
    train, judged = chosen.curves["train"], chosen.curves[board.split]
    speed = board.speedup(name, task)
    score = float(np.median(board.improvement(name, task)))
    value = float(np.median(speed.value))
    bound = "≥" if np.mean(speed.censored) >= 0.5 else ""
    rate, edge = chosen.rate, "*" * board.at_edge(name, task)
    accuracy = _NONE
    # Of a run that is lost it would be the accuracy of no training, or none at all.
    fine = not np.any(diverged(train["loss"]))
    if "accuracy" in judged and fine:
        share = float(np.median(final(judged["accuracy"])))
        accuracy = Cell(f"{share:.1%}", share)
    # What has overfitted has not diverged: its test loss may be above the first.
    loss = median_range(judged["loss"]) if fine else spread(train["loss"])
    return [
        Cell(task, task),
        Cell(name, name),
        _NONE if rate is None else Cell(f"{rate:g}{edge}", rate),
        _noted(spread(train["loss"]), _middle(train["loss"]) if fine else np.inf),
        _noted(loss, _middle(judged["loss"]) if fine else np.inf),
        accuracy,
        Cell(f"{score:.2f}", score),
        Cell(f"{bound}{value:.2f}", value),
    ]


def _noted(text: str, key: float) -> Cell:
    """The brackets behind a number are its note."""
    number, space, note = text.partition(" (")
    return Cell(number, key, f"({note}" if space else "")


def _middle(curves: np.ndarray) -> float:
    """To sort by; a run that is not finite comes last."""
    value = float(np.median(final(curves)))
    return value if np.isfinite(value) else np.inf


def _duel_cells(row: Sequence[str]) -> list[Cell]:
    """Texts of `task_rows` with the numbers that they start with, to sort by."""

    def key(text: str) -> float:
        if text.startswith("diverged"):
            return np.inf
        if text.startswith("<"):
            return 0.0
        number = re.match(r"-?[\d.]+(?:e[+-]\d+)?", text)
        return float(number[0]) if number else -1.0

    return [Cell(row[0], row[0]), *(_noted(text, key(text)) for text in row[1:])]


def _about(card: Mapping[str, Any]) -> str:
    trained = card.get("card", {})
    text = f"{card['optimizer']['name'] or 'Its own architecture'}"
    text += f", {card['meta_parameters']:,} meta-parameters"
    if trained.get("outer_steps"):
        text += (
            f", meta-trained for {trained['outer_steps']:,} outer steps "
            f"({trained['inner_steps']:,} inner steps) in {trained['seconds']:.0f} s "
            f"on {', '.join(trained['task_families'])}"
        )
    return text + "."


def _protocol(page: Page, board: Board) -> None:
    origins: collections.Counter[str] = collections.Counter()
    times = []
    for contestant in board.contestants.values():
        for trials in contestant.trials.values():
            for result in trials:
                rest = {k: v for k, v in result.origin.items() if k != "time"}
                origins[", ".join(f"{k} {v}" for k, v in rest.items())] += 1
                times.append(result.origin["time"])
    counted = "\n".join(f"{n} with {text}" for text, n in sorted(origins.items()))
    with page.section("How this was made"):
        page.paragraph(
            f"{origins.total():,} results, made from {min(times)} to {max(times)}."
        )
        for note in board.notes:
            page.paragraph(note)
        with page.folded("Code and machines"):
            page.verbatim(counted)
        with page.folded("Protocol"):
            page.verbatim(json.dumps(board.protocol._asdict(), indent=2))
