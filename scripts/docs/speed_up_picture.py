"""Draws the speed-up over tuned Adam of optimizers in docs/data/heldout_small.csv.

python scripts/docs/speed_up_picture.py    # writes docs/speed_up.svg
"""

import csv
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[2] / "docs"
SHOWN = {
    "adaptive_muon:0.03": "adaptive_muon",
    "muon_fast:0.022": "muon_fast",
    "muon_any_rate:0.024": "muon_any_rate",
    "muon_mixed:0.036": "muon_mixed",
    "muon+cosine": "Muon + cosine",
    "adamw+cosine": "AdamW + cosine",
    "schedule_free_adamw": "schedule-free AdamW",
    "adam": "Adam",
    "small_fc_mixed": "small_fc_mixed",
    "lion": "Lion",
}
UNTUNED, TUNED = "#0072b2", "#d55e00"


def main() -> None:
    with (DOCS / "data" / "heldout_small.csv").open(newline="") as file:
        found = {row["optimizer"]: row for row in csv.DictReader(file)}
    rows = [(label, found[name]) for name, label in SHOWN.items()]
    rows.sort(key=lambda row: float(row[1]["speed_up"]))
    # Text stays text, and two runs write the same bytes.
    style = {"svg.fonttype": "none", "svg.hashsalt": "l2o", "font.size": 11}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 3.9), layout="constrained")
        axes = figure.subplots()
        for height, (_, row) in enumerate(rows):
            untuned = row["tuning"] == "none"
            colour = UNTUNED if untuned else TUNED
            middle, low, high = (
                float(row[x]) for x in ("speed_up", "speed_up_low", "speed_up_high")
            )
            axes.plot([low, high], [height, height], color=colour, linewidth=3)
            axes.plot(middle, height, "o" if untuned else "s", color=colour, ms=9)
            axes.text(1.83, height, f"{middle:.2f}", va="center", color="#333333")
        axes.axvline(1, color="#888888", linewidth=1, linestyle="--")
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_xlim(0.78, 1.95)
        axes.set_xlabel(
            "steps that tuned Adam needs, over steps taken: median of 18 tasks"
        )
        for colour, marker, label in (
            (UNTUNED, "o", "nothing tuned"),
            (TUNED, "s", "best of 7 rates per task"),
        ):
            axes.plot([], [], marker, color=colour, label=label, ms=9)
        axes.legend(loc="lower right", bbox_to_anchor=(0.88, 0.0), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(DOCS / "speed_up.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
