"""Writes what an evaluation found into the cards of shipped optimizers.

    l2o evaluate --suite heldout/small --optimizers all adaptive_muon:0.03 ... --out DIR
    python scripts/recipes/renew_cards.py DIR --table docs/data/heldout_small.csv

The results of a card give way to those of the evaluation. The table has a row for every
optimizer, baselines too. `scripts/docs/card_pages.py` makes pages of both.
"""

import argparse
import csv
import json
from pathlib import Path

from l2o.files import write_json
from l2o.meta_train.evaluation import Board, Row, leaderboard, load_board

REFERENCE = "adam"
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def result_of(board: Board, row: Row) -> dict:
    """A row as cards have it."""

    def rounded(interval):
        return [round(x, 2) for x in (interval.value, interval.low, interval.high)]

    return {
        "suite": board.protocol.suite,
        "steps": board.protocol.steps,
        "seeds": board.protocol.seeds,
        "tuning": "none" if row.trials == 1 else f"{row.trials} rates per task",
        "score": rounded(row.score),
        "speed_up": rounded(row.speedup),
        "better_than_tuned_adam": list(row.better),
        "p": float(f"{row.p:.2g}"),
        "diverged": list(row.diverged),
    }


COLUMNS = (
    *("optimizer", "tuning", "score", "score_low", "score_high"),
    *("speed_up", "speed_up_low", "speed_up_high", "better", "tasks", "p"),
    *("diverged", "runs", "update_over_adam", "state_bytes"),
)


def cells(row: Row, result: dict) -> list:
    """A row of the table."""
    update = "" if row.update_time is None else f"{row.update_time:.2g}"
    return [
        row.name,
        result["tuning"],
        *result["score"],
        *result["speed_up"],
        *result["better_than_tuned_adam"],
        "" if row.name == REFERENCE else result["p"],
        *result["diverged"],
        update,
        f"{row.state_bytes:.3g}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--table", type=Path, required=True, help="a CSV file to write")
    options = parser.parse_args()
    board = load_board(options.folders)
    found: dict[str, list[dict]] = {}
    table = []
    for row in leaderboard(board):
        result = result_of(board, row)
        table.append(cells(row, result))
        if row.learned:
            found.setdefault(row.name.partition(":")[0], []).append(result)
    options.table.parent.mkdir(exist_ok=True)
    with options.table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(table)
    for name, results in found.items():
        path = CHECKPOINTS / name / "config.json"
        if path.is_file():
            content = json.loads(path.read_text())
            content["card"]["results"] = sorted(
                results, key=lambda x: x["tuning"] != "none"
            )
            write_json(path, content)
            print(f"written: {path}")


if __name__ == "__main__":
    main()
