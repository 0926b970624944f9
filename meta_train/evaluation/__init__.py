"""Honest evaluation: optimizers beside tuned baselines, under one protocol."""

from ._baselines import Baseline as Baseline
from ._baselines import baselines as baselines
from ._board import Board as Board
from ._board import load_board as load_board
from ._board import save_board as save_board
from ._curves import learning_curve as learning_curve
from ._entrants import Entrant as Entrant
from ._entrants import entrant as entrant
from ._evaluate import evaluate as evaluate
from ._leaderboard import Row as Row
from ._leaderboard import claim as claim
from ._leaderboard import leaderboard as leaderboard
from ._runs import Job as Job
from ._runs import Protocol as Protocol
from ._runs import run_jobs as run_jobs
from ._store import Result as Result
from ._store import Store as Store
