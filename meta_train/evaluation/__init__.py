"""Honest evaluation: optimizers beside tuned baselines, under one protocol."""

from ._baselines import Baseline, baselines, every_baseline
from ._board import Board, load_board, save_board
from ._curves import learning_curve
from ._entrants import Entrant, entrant
from ._evaluate import evaluate
from ._leaderboard import Row, claim, leaderboard
from ._runs import Job, Protocol, run_jobs
from ._scores import WINDOW
from ._store import (
    DATABASES,
    Result,
    Store,
    key_of,
    read_database,
    read_result,
    write_database,
)
from ._timing import read_timings, write_timings

__all__ = [
    "DATABASES",
    "WINDOW",
    "Baseline",
    "Board",
    "Entrant",
    "Job",
    "Protocol",
    "Result",
    "Row",
    "Store",
    "baselines",
    "claim",
    "entrant",
    "evaluate",
    "every_baseline",
    "key_of",
    "leaderboard",
    "learning_curve",
    "load_board",
    "read_database",
    "read_result",
    "read_timings",
    "run_jobs",
    "save_board",
    "write_database",
    "write_timings",
]
