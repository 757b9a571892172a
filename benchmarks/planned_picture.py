"""The plan benchmark as a picture: PSNR by computed steps, plans against the best of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.cells import Cells
from benchmarks.fidelity_report import Row
from benchmarks.planned_rows import rows
from benchmarks.settings import OWN
from benchmarks.sweep import STEPS

STYLES: dict[str, dict[str, Any]] = {
    "best peer": {"color": "#c0504d", "marker": "x", "linestyle": "--"},
    "best plain solver": {"color": "#7f7f7f", "marker": "s", "linestyle": ":"},
    "best other method of ours": {"color": "#4f9d69", "marker": "^", "linestyle": "--"},
    "Planned": {"color": "#1f4e79", "marker": "o", "linewidth": 2.4},
    "Planned, effort high": {"color": "#3a86c8", "marker": "o", "linewidth": 1.4},
    "Planned, gradient fit": {"color": "#8e5ea2", "marker": "*", "linewidth": 1.4},
    "Planned, weights descended": {"color": "#d08c2c", "marker": "v", "linewidth": 1.4},
}


def draw(cells: Cells, model: str, path: Path) -> None:
    """A panel for each solver and number of steps that has results."""
    panels = [
        (sampler, steps, found)
        for sampler in (OWN, "euler")
        for steps in (STEPS, 28)
        if (found := rows(cells, model, sampler, under="" if steps == STEPS else f"{steps} steps"))
    ]
    if not panels:
        return
    figure = Figure(figsize=(5.2 * len(panels) + 1, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (sampler, steps, judged) in zip(axes, panels, strict=True):
        _panel(axis, judged, steps)
        solver = "the solver it ships with" if sampler == OWN else f"flow {sampler}"
        axis.set_title(f"{steps} steps, {solver}", loc="left", fontsize=10)
    axes[0].set_ylabel("PSNR to the plain sample (dB)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{model}: plans and the best of the rest", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)


def _panel(axis: Any, judged: Sequence[Row], steps: int) -> None:
    for name, points in lines(judged, steps).items():
        places, means, errors = zip(*points, strict=True)
        style = STYLES[name]
        axis.errorbar(places, means, errors, label=name, markersize=5, capsize=2, **style)
    axis.set_xticks(sorted({round(steps / row.ratio) for row in judged}))
    axis.set_xlabel(f"computed steps of {steps}")
    axis.grid(alpha=0.3)


def lines(judged: Sequence[Row], steps: int) -> dict[str, list[tuple[int, float, float]]]:
    """Name of a line -> (computed steps, mean PSNR, its standard error) of its points, in dB.

    At every number of steps all lines are of the same samples: those that all rows there have.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for ratio in sorted({row.ratio for row in judged}, reverse=True):
        here = [row for row in judged if row.ratio == ratio and _kind(row) in STYLES]
        shared = min((len(row.psnr) for row in here), default=0)
        for row in here:
            told = np.array(row.psnr[:shared])
            error = told.std(ddof=1) / np.sqrt(shared) if shared > 1 else 0.0
            point = (float(told.mean()), float(error))
            points, budget = found.setdefault(_kind(row), {}), round(steps / ratio)
            points[budget] = max(point, points.get(budget, point))
    return {n: [(b, *p) for b, p in found[n].items()] for n in STYLES if n in found}


def _kind(row: Row) -> str:
    if row.row.startswith("Planned"):
        return row.row  # plans from other numbers of samples have no line here
    if row.by == "ours":
        return "best other method of ours"
    return "best plain solver" if row.by == "plain" else "best peer"
