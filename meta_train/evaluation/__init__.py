"""Honest evaluation: optimizers beside tuned baselines, under one protocol."""

from ._baselines import Baseline as Baseline
from ._baselines import baselines as baselines
from ._baselines import every_baseline as every_baseline
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
from ._scores import WINDOW as WINDOW
from ._store import DATABASES as DATABASES
from ._store import Result as Result
from ._store import Store as Store
from ._store import key_of as key_of
from ._store import read_database as read_database
from ._store import read_result as read_result
from ._store import write_database as write_database
from ._timing import read_timings as read_timings
from ._timing import write_timings as write_timings
