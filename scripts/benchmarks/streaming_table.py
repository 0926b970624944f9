"""Time of an outer step with data in memory, and with a stream from a file.

The file is a memory-mapped one of 1.2 GB, shaped as CIFAR-10: 400 000 images of random
bytes. What the operating system keeps of it is dropped before every run, so that it is
read from the disk. Runs are interleaved; each gives the mean time of its outer steps
after the first few. The data in memory are the stream's first window, so that both run
the same program.

    python scripts/benchmarks/streaming_table.py
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from l2o import tasks
from l2o.meta_train import Config, run

_SHAPE = (32, 32, 3)
_WARM_UP = 5  # outer steps, in which programs are compiled and buffers filled


def write(folder: Path, images: int) -> dict[str, np.ndarray]:
    """Random images and labels in `folder`, mapped."""
    rng = np.random.default_rng(0)
    path = folder / "x.npy"
    x = np.lib.format.open_memmap(path, "w+", np.uint8, (images, *_SHAPE))
    for block in np.array_split(x, 100):
        block[:] = rng.integers(0, 256, block.shape, np.uint8)
    x.flush()
    y = rng.integers(0, 10, images).astype(np.int32)
    y[:10] = range(10)
    return {"x": np.load(path, mmap_mode="r"), "y": y}


def forget(path: Path) -> None:
    """Drops the file from the operating system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def scaled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pixels in [0, 1]."""
    return {"x": batch["x"].astype(np.float32) / 255, "y": batch["y"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--windows", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--outer-steps", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=32)
    options = parser.parse_args()
    config = Config(
        optimizer="small_fc",
        particles=4,
        truncation=20,
        episode_length=(20, 200),
        outer_steps=options.outer_steps,
        outer_warmup=0,
        checkpoint_every=options.outer_steps,
    )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
        arrays = write(folder, options.images)
        size = arrays["x"].nbytes
        families = {}
        for window in options.windows:
            photos = tasks.stream(arrays, window, transform=scaled)
            family = tasks.image_mlp([photos.window], (options.hidden,))
            families[window, "memory"] = family
            families[window, "stream"] = tasks.with_stream(family, photos)

        seconds: dict[tuple[int, str], list[float]] = {key: [] for key in families}
        quiet = Console(quiet=True)
        for repeat in track(range(options.repeats + 1), "runs"):
            for key, family in families.items():
                forget(folder / "x.npy")
                records: list[dict] = []
                out = folder / f"{repeat}-{key}"
                run(
                    config,
                    out,
                    families=[family],
                    on_step=records.append,
                    console=quiet,
                )
                if repeat:  # the first run compiles
                    times = [r["seconds"] for r in records[_WARM_UP:]]
                    # Steps are read in bursts: single times say little.
                    seconds[key].append(statistics.mean(times))

    table = Table(
        *("window", "MB per step", "memory, ms", "stream, ms", "stream / memory"),
        title=f"{config.optimizer} on mlp{options.hidden}, {config.particles} pairs, "
        f"{config.truncation} inner steps of 64 images; {size / 1e9:.2f} GB on disk; "
        f"{jax.devices()[0].device_kind}; median (range) of n = {options.repeats}",
    )

    def told(values, digits):
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    for window in options.windows:
        memory, stream = (
            [1000 * s for s in seconds[window, kind]] for kind in ("memory", "stream")
        )
        ratios = [b / a for a, b in zip(memory, stream, strict=True)]
        moved = window * (4 * np.prod(_SHAPE) + 4) / 1e6
        table.add_row(
            f"{window}",
            f"{moved:.0f}",
            told(memory, 0),
            told(stream, 0),
            told(ratios, 2),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
