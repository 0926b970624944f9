"""What a person looks at: the table in the terminal and the HTML page."""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

# from ._evaluate import TaskResult
# from ._speedup import compare, smooth

# Okabe & Ito's palette: distinguishable with any colour vision.
_LEARNED, _ADAM = "#D55E00", "#0072B2"
_FAMILIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_HEADER = (
    "task",
    "learned: loss",
    "Adam: loss",
    "Adam's rate",
    "speed-up",
    "reached",
    "Adam needs",
)


def table_rows(results: Sequence[TaskResult]) -> list[tuple[str, ...]]:
    """The evaluation's table: median and range over seeds of the training loss.

    "reached" counts the seeds whose learned run got to Adam's final loss; where some
    did not, "Adam needs" is the share of the steps in which Adam gets to theirs.
    """
    rows: list[tuple[str, ...]] = []
    for r in results:
        c = compare(r.steps, r.learned["train"], r.adam["train"])
        rates = sorted(r.adam_grid)
        edge = "*" if r.adam_learning_rate in (rates[0], rates[-1]) else ""
        reached = np.isfinite(c.speedup)
        behind = c.adam_fraction[np.isfinite(c.adam_fraction) & ~reached]
        rows.append(
            (
                r.task,
                _spread(c.learned_final),
                _spread(c.adam_final),
                f"{r.adam_learning_rate:g}{edge}",
                _speedup(c.speedup),
                f"{reached.sum()}/{len(reached)}",
                f"{np.median(behind):.0%}" if len(behind) else "-",
            )
        )
    return rows


def terminal_table(results: Sequence[TaskResult]) -> Table:
    """`table_rows` for rich, to fit 80 columns."""
    title = "Training loss after the same number of steps: median (range) over seeds"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(_HEADER):
        name = name.replace(" ", "\n")
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in table_rows(results):
        table.add_row(*(cell.replace(" (", "\n(") for cell in row))
    return table


def _spread(x: np.ndarray) -> str:
    if not np.all(np.isfinite(x)):
        return f"diverged in {int(np.sum(~np.isfinite(x)))} of {len(x)}"
    return f"{np.median(x):.3g} ({x.min():.2g}–{x.max():.2g})"


def _speedup(speedup: np.ndarray) -> str:
    """Median and range; a seed that did not reach Adam's loss counts as below 1."""
    values = np.sort(np.where(np.isfinite(speedup), speedup, -np.inf))
    middle = float(np.median(values))

    def text(x: float) -> str:
        return f"{x:.2f}" if np.isfinite(x) else "<1"

    return f"{text(middle)} ({text(values[0])}–{text(values[-1])})"


def meta_training_figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Meta-loss against outer steps, one smoothed line per task family."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    families = sorted({r["family"] for r in records})
    for colour, family in zip(_FAMILIES * len(families), families, strict=False):
        mine = [r for r in records if r["family"] == family]
        steps = np.array([r["step"] for r in mine])
        loss = np.array([r["meta_loss"] for r in mine])
        axes.plot(steps, loss, ".", ms=2, color=colour, alpha=0.25)
        width = max(len(loss) // 20, 1)
        kernel = np.ones(width) / width
        axes.plot(
            steps[width - 1 :],
            np.convolve(loss, kernel, "valid"),
            color=colour,
            label=family,
        )
    axes.set(xlabel="outer step", ylabel="meta-loss (mean inner loss)")
    axes.legend(frameon=False)
    _tidy(axes)
    return figure


def learning_curves_figure(results: Sequence[TaskResult]) -> Figure:
    """Training loss against inner steps: mean and range over seeds, per task."""
    columns = min(len(results), 2)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    for axes, r in zip(
        np.ravel(figure.subplots(rows, columns, squeeze=False)), results, strict=False
    ):
        for curves, colour, style, label in (
            (r.learned["train"], _LEARNED, "-", "learned optimizer"),
            (r.adam["train"], _ADAM, "--", f"Adam, rate {r.adam_learning_rate:g}"),
        ):
            line = smooth(curves)
            axes.plot(r.steps, line.mean(0), style, color=colour, label=label)
            axes.fill_between(
                r.steps, line.min(0), line.max(0), color=colour, alpha=0.2, lw=0
            )
        axes.set(
            title=r.task, xlabel="inner step", ylabel="training loss", yscale="log"
        )
        axes.legend(frameon=False)
        _tidy(axes)
    return figure


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def write_report(
    path: Path,
    results: Sequence[TaskResult],
    *,
    card: dict[str, Any],
    evaluation: Any,
    records: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
) -> None:
    """One HTML file that needs no network, and its figures as SVG beside it.

    Args:
      path: of the HTML file.
      results: from `evaluate`.
      card: content of the optimizer's `config.json`.
      evaluation: the `Evaluation` behind the results.
      records: of `metrics.jsonl`, for the meta-training curve.
      notes: sentences for the reader, such as which data was used.
    """
    trained = card.get("card", {})
    name = card["optimizer"]["name"] or "an optimizer of your own"
    parts = [f"<h1>Learned optimizer: {html.escape(name)}</h1>"]
    summary = f"{card['meta_parameters']} meta-parameters"
    if trained.get("outer_steps"):
        summary += (
            f", meta-trained for {trained['outer_steps']} outer steps "
            f"({trained['inner_steps']:,} inner steps) in {trained['seconds']:.0f} s "
            f"on {', '.join(trained['task_families'])}"
        )
    parts.append(f"<p>{html.escape(summary)}.</p>")

    parts.append("<h2>Tasks it was evaluated on</h2>")
    grid = ", ".join(f"{rate:g}" for rate in evaluation.learning_rates)
    parts.append(
        f"<p>{evaluation.steps} steps, {evaluation.seeds} seeds; final loss of the "
        "training split, median (range) over seeds. Speed-up = Adam's steps / the "
        "learned optimizer's steps to Adam's own final loss, seed by seed on the same "
        "initialisation and batches. Adam's rate is the best of "
        f"{html.escape(grid)} for these very runs; the learned optimizer has nothing "
        "tuned. Every number is read from a trailing mean over five points of the "
        "curve. Reached: of how many seeds the learned run got to Adam's final loss; "
        "where some did not, Adam needs this share of the steps to get to theirs. A "
        "star marks a rate at the edge of the grid.</p>"
    )
    parts.append(_html_table(_HEADER, table_rows(results)))
    parts.append(
        _image(
            learning_curves_figure(results),
            path.with_name("learning_curves.svg"),
            "Learning curves: training loss against inner steps for the learned "
            "optimizer and tuned Adam, one panel per task",
        )
    )
    if records:
        parts.append("<h2>Meta-training</h2>")
        parts.append(
            _image(
                meta_training_figure(records),
                path.with_name("meta_training.svg"),
                "Meta-training curve: meta-loss against outer steps, one line per "
                "task family",
            )
        )
    parts.append("<h2>Adam's learning-rate sweep</h2><p>Mean final training loss.</p>")
    rates = sorted(results[0].adam_grid)
    parts.append(
        _html_table(
            ("task", *(f"{rate:g}" for rate in rates)),
            [(r.task, *(f"{r.adam_grid[x]:.3g}" for x in rates)) for r in results],
        )
    )
    parts.append("<h2>Test loss</h2><p>Median (range) at the end, same runs.</p>")
    parts.append(
        _html_table(
            ("task", "learned", "Adam (chosen by training loss)"),
            [
                (
                    r.task,
                    _spread(smooth(r.learned["test"])[:, -1]),
                    _spread(smooth(r.adam["test"])[:, -1]),
                )
                for r in results
            ],
        )
    )
    if notes:
        parts.append("<h2>Notes</h2>")
        parts += [f"<p>{html.escape(note)}</p>" for note in notes]
    details = json.dumps(
        {"card": card, "evaluation": dataclasses.asdict(evaluation)}, indent=2
    )
    parts.append(
        "<details><summary>Card and configuration</summary>"
        f"<pre>{html.escape(details)}</pre></details>"
    )
    path.write_text(_PAGE.replace("BODY", "\n".join(parts)), encoding="utf-8")


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _image(figure: Figure, path: Path, alternative: str) -> str:
    buffer = io.BytesIO()
    # Fixed identifiers and no date: the same numbers give the same file.
    with matplotlib.rc_context({"svg.hashsalt": "l2o"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    path.write_bytes(buffer.getvalue())
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{html.escape(alternative)}" src="data:image/svg+xml;base64,{data}">'
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>l2o report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; height: auto; margin-top: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
        font-size: .875rem; }
th, td { padding: .35rem .45rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
tbody th { font-weight: 600; }
pre { overflow-x: auto; background: #f5f5f5; padding: 1rem; }
@media print { details { display: none; } }
</style>
</head>
<body>
BODY
</body>
</html>
"""
