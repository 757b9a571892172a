"""The fidelity benchmark's rows as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fidelity_report import Row
from benchmarks.sweep import STEPS


def draw(judged: Sequence[Row], model: str, path: Path) -> None:
    """PSNR against work and, where timed, against speed-up; a line a row of the table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    work, speed = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(r.row for r in sorted(judged, key=lambda r: r.by != "ours")))
    for i, name in enumerate(names):
        mine = sorted((r for r in judged if r.row == name), key=lambda r: r.means["work"])
        ours = mine[0].by == "ours"
        style: dict[str, Any] = {
            "color": f"C{i % 10}",
            "marker": "oDPX"[i // 10] if ours else "x+v^sd*"[i % 7],
            "linewidth": 2.2 if ours else 1,
            "linestyle": "-" if ours else "--",
        }
        psnr = [r.means["psnr"] for r in mine]
        work.errorbar(
            [r.means["work"] for r in mine], psnr, [r.error for r in mine], label=name, **style
        )
        timed = [r for r in mine if r.speedup is not None]
        if timed:
            speed.plot(
                [r.speedup[0] for r in timed if r.speedup],
                [r.means["psnr"] for r in timed],
                **style,
            )
    work.set_xlabel(f"work, as a fraction of {STEPS} plain steps (FLOPs of the denoiser)")
    speed.set_xlabel("speed-up of a call without decoding (median of paired runs)")
    work.set_ylabel("PSNR to the plain sample (dB)")
    for axis in (work, speed):
        axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.suptitle(f"{model}: fidelity at fewer computed steps", x=0.01, ha="left")
    figure.savefig(path, dpi=120)
