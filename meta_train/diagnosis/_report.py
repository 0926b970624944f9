"""What a person sees of a diagnosis: tables, a picture, a sentence; and its JSON."""

import dataclasses
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import l2o
from l2o.files import is_shipped, plain, write_json
from l2o.names import is_hub_id, is_path, unknown_name
from l2o.tasks import task_specs

from .._palette import BLACK, BLUE, GREEN, OLIVE, ORANGE, PURPLE, SKY, VERMILION
from .._progress import Progress
from ..estimators._problem import learn_optimizer
from ._compare import Cell
from ._diagnose import Findings, diagnose
from ._settings import ESTIMATORS, Diagnosis

# A marker and a dash each: estimators may coincide.
_LOOK = {
    "backprop": (BLACK, "o", "-"),
    "truncated_backprop": (ORANGE, "s", "--"),
    "full_es": (BLUE, "^", "-"),
    "truncated_es": (SKY, "v", "--"),
    "pes": (GREEN, "D", "-"),
    "nres": (PURPLE, "P", ":"),
    "forward_gradient": (VERMILION, "X", "-"),
    "inverse_variance": (OLIVE, "*", "--"),
}
_DIRECTIONS = {
    "random 1": (BLUE, "-"),
    "random 2": (GREEN, "--"),
    "gradient": (VERMILION, "-"),
}


def diagnose_source(
    source: str,
    config: Diagnosis,
    out: Path,
    *,
    console: Console,
    options: Mapping[str, Any] | None = None,
) -> Findings:
    """Diagnoses an optimizer on `config.family`; prints and writes what was found.

    Args:
      source: an architecture, whose theta is drawn with the seed; or weights, as
        `l2o.load` takes them.
      config: what is measured.
      out: folder of `diagnosis.json` and `diagnosis.svg`.
      console: for the tables and the recommendation.
      options: arguments of the factory.

    Raises:
      ValueError, FileNotFoundError: an unknown source, before anything is compiled.

    Example:
      >>> from pathlib import Path
      >>> from rich.console import Console
      >>> from l2o.meta_train import Diagnosis, diagnose_source
      >>> findings = diagnose_source(
      ...     "small_fc", Diagnosis(), Path("runs/diagnosis"), console=Console()
      ... )  # doctest: +SKIP

    Source: "Gradients are not all you need" (Metz et al., 2021).
    """
    optimizer, theta = _resolve(source, config.seed, options or {})
    (spec,) = task_specs(config.family).values()
    problem = learn_optimizer(optimizer, spec.family())
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with Progress("measurement", console) as progress:
        findings = diagnose(problem, theta, config, on_progress=progress.update)
    seconds = time.perf_counter() - start
    content = {
        "source": source,
        "optimizer": optimizer.name,
        "options": dict(options or {}),
        "config": dataclasses.asdict(config),
        **contents(findings),
        "seconds": seconds,
        "cores": os.cpu_count(),
    }
    write_json(out / "diagnosis.json", plain(content))
    with matplotlib.rc_context({"svg.hashsalt": "l2o"}):
        figure(findings).savefig(
            out / "diagnosis.svg", format="svg", metadata={"Date": None}
        )
    for table in tables(findings):
        console.print(table)
    exponent, error = findings.dynamics.exponent
    d = findings.dynamics
    console.print(
        f"leading Lyapunov exponent {exponent:+.4f} ± {error:.4f} per step (standard "
        f"error, n = {config.runs} runs); at steps "
        f"{', '.join(str(t) for t in d.steps)}: spectral radius "
        f"{_row(d.spectral_radius)}, largest singular value {_row(d.singular_value)}",
        highlight=False,
    )
    console.print(findings.recommendation.sentence, style="bold", highlight=False)
    console.print(
        f"{seconds:.0f} s; {(out / 'diagnosis.json').resolve()} and diagnosis.svg",
        highlight=False,
        soft_wrap=True,
    )
    return findings


def _resolve(
    source: str, seed: int, options: Mapping[str, Any]
) -> tuple[l2o.LearnedOptimizer, Any]:
    if source in l2o.factories():
        optimizer = l2o.make(source, **options)
        return optimizer, optimizer.init_theta(jax.random.key(seed))
    if not (is_path(source) or is_hub_id(source) or is_shipped(source)):
        known = [*l2o.factories(), *l2o.shipped()]
        paths = "a file or folder of weights"
        raise ValueError(unknown_name("optimizer", source, known, paths=paths))
    return l2o.load_unbound(source, **options)


def contents(findings: Findings) -> dict[str, Any]:
    """All numbers, by name."""
    exponent, error = findings.dynamics.exponent
    return {
        "meta_parameters": findings.meta_parameters,
        "recommendation": findings.recommendation._asdict(),
        "crossover": findings.crossover,
        "cells": [{**c._asdict(), "price": c.price} for c in findings.cells],
        "dynamics": {
            "exponent": exponent,
            "exponent_error": error,
            **findings.dynamics._asdict(),
        },
        "slices": [s._asdict() for s in findings.slices],
    }


def tables(findings: Findings) -> list[Table]:
    """Variance at every length; everything at the longest, to fit 80 columns."""
    lengths = sorted({c.length for c in findings.cells})
    first = Table(title="Variance of one particle, by episode length T", box=None)
    first.add_column("")
    for length in lengths:
        first.add_column(str(length), justify="right", no_wrap=True)
    for name in ESTIMATORS:
        mine = [c for c in findings.cells if c.estimator == name]
        first.add_row(name, *(_number(c.variance) for c in mine))
    last = [c for c in findings.cells if c.length == lengths[-1]]
    second = Table(
        title=f"At T = {lengths[-1]}: n = {last[0].particles} particles, bias against "
        f"{last[0].reference}",
        box=None,
    )
    second.add_column("")
    for name in (
        "|mean|\n± error",
        "bias\n(up to)",
        "inner\nsteps",
        "variance\nx steps",
        "not\nfinite",
        "",
    ):
        second.add_column(name, justify="right", no_wrap=True)
    for c in last:
        second.add_row(
            c.estimator,
            f"{_number(c.mean_norm)} ± {_number(c.standard_error)}",
            f"{_number(c.bias)} ({_number(c.bias_limit)})",
            str(c.inner_steps),
            _number(c.price),
            str(c.nonfinite),
            _verdict(c),
        )
    return [first, second]


def _verdict(c: Cell) -> str:
    if c.nonfinite:
        return "not finite"
    if c.usable:
        return ""
    return "biased" if c.significant else "bias unclear"


def _number(x: float) -> str:
    return f"{x:.2g}" if math.isfinite(x) else "-"


def _row(x: np.ndarray) -> str:
    return ", ".join(f"{v:.3f}" for v in x.mean(0))


def figure(findings: Findings) -> Figure:
    """Variance against T, growth of differences, slices of the meta-loss."""
    page = Figure(figsize=(11, 8.5), layout="constrained")
    halves: Any = page.subfigures(2, 1, height_ratios=(1.15, 1))
    upper, lower = halves
    left, right = upper.subplots(1, 2, width_ratios=(1.4, 1))
    _draw_variances(left, findings)
    _draw_growth(right, findings)
    lengths = sorted({s.length for s in findings.slices})
    scales = sorted({float(s.offsets[-1]) for s in findings.slices})
    panels = np.ravel(lower.subplots(1, len(lengths) * len(scales), squeeze=False))
    pairs = [(t, scale) for t in lengths for scale in scales]
    for axes, (length, scale) in zip(panels, pairs, strict=True):
        for s in findings.slices:
            if (s.length, float(s.offsets[-1])) == (length, scale):
                colour, dash = _DIRECTIONS[s.direction]
                axes.plot(
                    s.offsets, s.losses, dash, color=colour, label=s.direction, lw=1.5
                )
        axes.set(
            title=f"T = {length}",
            xlabel="distance from theta / (std √d)",
            ylabel="meta-loss" if axes is panels[0] else "",
        )
        _tidy(axes)
    panels[0].legend(frameon=False, fontsize="small")
    return page


def _draw_variances(axes: Any, findings: Findings) -> None:
    for name in ESTIMATORS:
        mine = [c for c in findings.cells if c.estimator == name]
        points = [(c.length, c.variance) for c in mine if 0 < c.variance < math.inf]
        if not points:
            continue
        colour, marker, dash = _LOOK[name]
        axes.plot(
            *zip(*points, strict=True),
            dash,
            marker=marker,
            ms=6,
            mfc="none",
            color=colour,
            label=name,
        )
    if findings.crossover is not None:
        axes.axvline(findings.crossover, color="0.5", lw=1)
        axes.annotate(
            f"backprop passes full_es: T = {findings.crossover:.0f}",
            (findings.crossover, 0.02),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            fontsize="small",
        )
    lengths = sorted({c.length for c in findings.cells})
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="T, inner steps of an episode",
        ylabel="variance of one particle's gradient",
    )
    axes.set_xticks(lengths, [str(t) for t in lengths])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small")
    _tidy(axes)


def _draw_growth(axes: Any, findings: Findings) -> None:
    d = findings.dynamics
    total = np.cumsum(d.growth, -1)
    steps = np.arange(1, total.shape[1] + 1)
    axes.plot(steps, total.T, color=BLUE, alpha=0.4, lw=1)
    exponent, error = d.exponent
    middle = total[:, d.burn_in :].mean()
    line = steps[d.burn_in :]
    axes.plot(
        line,
        middle + exponent * (line - line.mean()),
        color=VERMILION,
        label=f"exponent {exponent:+.3f} ± {error:.3f} per step",
    )
    axes.set(xlabel="inner step", ylabel="log growth of a small difference")
    axes.legend(frameon=False, fontsize="small")
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
