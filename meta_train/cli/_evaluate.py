"""`l2o evaluate` and `l2o report`: an evaluation or a run, and the page about it."""

import contextlib
import os
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

import l2o
from l2o.tasks import make_family, task_specs, text_fingerprint

from .._config import Evaluation
from .._progress import Progress
from ..evaluation._behaviour import behaviour_figures
from ..evaluation._board import MANIFEST, Board, load_board, save_board
from ..evaluation._entrants import entrant
from ..evaluation._evaluate import evaluate
from ..evaluation._page import write_page
from ..evaluation._store import Store
from ..evaluation._tables import task_table, terminal_table
from ..tradeoffs import figures as study_figures
from ..tradeoffs import load_study
from ..tradeoffs._rows import FILE as STUDY
from ..training._metrics import read_metrics
from ._hints import hint_use

PAGE = "report.html"
METRICS = "metrics.jsonl"
_FAMILY = "mlp32"  # whose training shows what a rule does


def evaluate_command(
    config: Evaluation, out: Path, *, run: Path | None, console: Console
) -> Path:
    """Evaluates, prints the tables, writes the page; returns its path.

    Args:
      config: what to evaluate.
      out: folder for the results, `evaluation.json`, the page and its figures. Results
        that are there already, or came with the package, are not made again.
      run: folder of a meta-training run, for its curve.
      console: where tables go.
    """
    for text in config.optimizers:
        if text != "all":
            entrant(text)  # before anything is written
    if run is not None and not (run / METRICS).exists():
        raise ValueError(f"{run} holds no run: there is no {METRICS}")
    store = Store(out / "results")
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Progress("optimizer x task", console) as progress:
        board = evaluate(config, store=store, on_progress=progress.update)
    board = board._replace(notes=_notes(board, time.perf_counter() - start))
    save_board(out, board, store)
    path = _write(out / PAGE, board, run)
    say(console, board, path)
    sources = [x.source for x in board.contestants.values() if x.source is not None]
    if sources:
        hint_use(console, sources[0])
    return path


def report_command(
    folders: Sequence[Path],
    out: Path | None,
    *,
    port: int | None = None,
    console: Console,
) -> Path | None:
    """Writes the page about runs and evaluations, or serves it as they go on.

    Args:
      folders: of a meta-training run, of evaluations that fit each other, of a study
        of trade-offs, or several of these.
      out: folder for `report.html`; the first of the folders by default.
      port: serve it on this port of the local host, made again for every visit, until
        Ctrl-C; writes no page.
      console: where the path is printed.

    Raises:
      ValueError: a folder holds none of these, or two evaluations do not fit.
    """
    found = _sort(folders)
    path = (out or Path(folders[0])) / PAGE
    if port is not None:
        _serve(path, folders, port, console)
        return None
    board = load_board(found.evaluations) if found.evaluations else None
    _write(path, board, found.run, found.study)
    if board is not None:
        console.print(terminal_table(board))
    console.print(f"report: {path.resolve()}", highlight=False, soft_wrap=True)
    return path


def say(console: Console, board: Board, path: Path) -> None:
    """The tables, and where the page is."""
    console.print(terminal_table(board))
    for name, contestant in board.contestants.items():
        if contestant.learned:
            console.print(task_table(board, name))
    console.print(f"report: {path.resolve()}", highlight=False, soft_wrap=True)


class _Found(NamedTuple):
    run: Path | None
    evaluations: list[Path]
    study: Path | None


def _sort(folders: Sequence[Path]) -> _Found:
    """What each folder is; an evaluation beside a run counts, too."""
    runs, evaluations, studies = [], [], []
    for folder in map(Path, folders):
        if (folder / MANIFEST).exists():
            evaluations.append(folder)
        elif (folder / STUDY).exists():
            studies.append(folder)
        elif (folder / METRICS).exists():
            runs.append(folder)
            if (folder / "evaluation" / MANIFEST).exists():
                evaluations.append(folder / "evaluation")
        else:
            raise ValueError(
                f"{folder} holds neither a run (metrics.jsonl, of `l2o meta-train`) "
                f"nor an evaluation ({MANIFEST}, of `l2o evaluate`) nor a study "
                f"({STUDY}, of `l2o tradeoffs`)"
            )
    for several, what in ((runs, "runs"), (studies, "studies")):
        if len(several) > 1:
            raise ValueError(f"{several[0]} and {several[1]} are two {what}: name one")
    return _Found(next(iter(runs), None), evaluations, next(iter(studies), None))


def _write(
    path: Path, board: Board | None, run: Path | None, study: Path | None = None
) -> Path:
    behaviour, card = {}, None
    for name, source in _sources(board, run).items():
        # Weights that are no longer there have no pictures; their results remain.
        with contextlib.suppress(ImportError, OSError, ValueError):
            optimizer, theta = l2o.load_unbound(source)
            family = make_family(_FAMILY)
            behaviour[name] = behaviour_figures(optimizer, theta, family)
            if board is None:
                card = l2o.read_card(source)
    records = read_metrics(run) if run is not None else ()
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_page(
        path,
        board,
        records=records,
        behaviour=behaviour,
        tradeoffs=study_figures(load_study(study)["rows"]) if study else (),
        card=card,
    )


def _sources(board: Board | None, run: Path | None) -> dict[str, str | Path]:
    if board is not None:
        every = board.contestants.values()
        return {x.name: x.source for x in every if x.source is not None}
    frozen = run / "frozen" if run is not None else None
    return {run.name: frozen} if run and frozen and frozen.exists() else {}


def _notes(board: Board, seconds: float) -> tuple[str, ...]:
    notes = [f"The evaluation took {seconds:.0f} s on {os.cpu_count()} cores."]
    known: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        known = dict(task_specs(board.tasks))
    if any("python_docs" in spec.datasets for spec in known.values()):
        notes.append(
            "Tasks on text use the documentation text of the Python that runs them "
            f"(SHA-256 {text_fingerprint()}...); it differs between Python versions."
        )
    return tuple(notes)


def _serve(path: Path, folders: Sequence[Path], port: int, console: Console) -> None:
    def render() -> bytes:
        found = _sort(folders)
        board = load_board(found.evaluations) if found.evaluations else None
        written = _write(path, board, found.run, found.study)
        page = written.read_text(encoding="utf-8")
        refresh = '<meta http-equiv="refresh" content="15">'
        return page.replace("<head>", f"<head>\n{refresh}", 1).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            try:
                body = render()
            except (ValueError, OSError) as error:
                self.send_error(500, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        console.print(
            f"http://localhost:{server.server_port} follows {folders[0]}; "
            "Ctrl-C ends it",
            highlight=False,
            soft_wrap=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
