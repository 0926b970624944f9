"""Import times in fresh processes: l2o beside what it stands on.

    python scripts/benchmarks/benchmark_import.py --repeats 10

Each round starts one process per row, in turn, so that a busy machine slows all rows
alike. Prints median, minimum and maximum of the wall time of the import statement.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile

ROWS = ("import jax, optax", "import l2o", "import l2o.tasks", "import l2o.meta_train")
TIMER = """
import time
start = time.perf_counter()
{}
print(time.perf_counter() - start)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as away:  # from the checkout's own folders
        for _ in range(repeats):
            for row in ROWS:
                command = [sys.executable, "-c", TIMER.format(row)]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, cwd=away
                )
                seconds[row].append(float(done.stdout))
    base = statistics.median(seconds[ROWS[0]])
    print(f"{'statement':<24} {'median s':>8} {'min':>6} {'max':>6} {'ratio':>6}")
    for row, times in seconds.items():
        median = statistics.median(times)
        print(
            f"{row:<24} {median:8.2f} {min(times):6.2f} {max(times):6.2f} "
            f"{median / base:6.2f}"
        )


if __name__ == "__main__":
    main()
