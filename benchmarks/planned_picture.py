"""The plan benchmark as a picture: PSNR by computed steps, plans against the best of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    for name, style in STYLES.items():
        best: dict[int, Row] = {}
        for row in judged:
            if _kind(row) != name:
                continue
            budget = round(steps / row.ratio)
            if budget not in best or row.means["psnr"] > best[budget].means["psnr"]:
                best[budget] = row
        if best:
            places = sorted(best)
            mean, error = ([f(best[b]) for b in places] for f in (_mean, _error))
            axis.errorbar(places, mean, error, label=name, markersize=5, capsize=2, **style)
    axis.set_xticks(sorted({round(steps / row.ratio) for row in judged}))
    axis.set_xlabel(f"computed steps of {steps}")
    axis.grid(alpha=0.3)


def _mean(row: Row) -> float:
    return row.means["psnr"]


def _error(row: Row) -> float:
    return row.error if row.samples > 1 else 0.0


def _kind(row: Row) -> str:
    if row.row.startswith("Planned"):
        return row.row  # plans from other numbers of samples have no line here
    if row.by == "ours":
        return "best other method of ours"
    return "best plain solver" if row.by == "plain" else "best peer"
