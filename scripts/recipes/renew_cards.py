"""Writes what an evaluation found into the cards of shipped optimizers.

    l2o evaluate --suite heldout/small --optimizers adaptive_muon:0.03 ... --out FOLDER
    python scripts/recipes/renew_cards.py FOLDER

A result takes the place of the one with the same suite, length and tuning; results of
other tunings stay. Prints the rows as tables of docs and README have them.
"""

import argparse
import json
from pathlib import Path

from l2o.files import write_json
from l2o.meta_train.evaluation import Board, Row, leaderboard, load_board

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


def renewed(card: dict, result: dict) -> dict:
    """The card with the result in the place of the one that it replaces."""
    names = ("suite", "steps", "tuning")
    same = [x for x in card["results"] if all(x[k] == result[k] for k in names)]
    others = [x for x in card["results"] if x not in same]
    return {**card, "results": [result, *others]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    board = load_board(options.folders)
    print("| | score | speed-up | better | p | diverged |")
    print("|---|---|---|---|---|---|")
    for row in leaderboard(board):
        result = result_of(board, row)
        score, speed_up = (
            "{:.2f} ({:.2f} to {:.2f})".format(*result[k])
            for k in ("score", "speed_up")
        )
        better, of = result["better_than_tuned_adam"]
        lost = "{} of {}".format(*result["diverged"])
        print(
            f"| {row.name}, {result['tuning']} | {score} | {speed_up} | {better} of "
            f"{of} | {result['p']} | {lost} |"
        )
        path = CHECKPOINTS / row.name.partition(":")[0] / "config.json"
        if row.learned and path.is_file():
            content = json.loads(path.read_text())
            content["card"] = renewed(content["card"], result)
            write_json(path, content)


if __name__ == "__main__":
    main()
