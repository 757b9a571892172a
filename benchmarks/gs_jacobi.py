"""GS-Jacobi beside one position after the other, on the small flow trained on pictures of shapes.

Processor time on one thread, turn about, in batches of several sizes. Run as
`python benchmarks/gs_jacobi.py`; it takes a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from accel.pipelines.tiny.tarflow import TarFlow, picture, trained  # noqa: E402
from accel.samplers.gs_jacobi import SEQUENTIAL, Inversion, planned, sample  # noqa: E402
from benchmarks import page  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity import RESULTS  # noqa: E402
from benchmarks.rounds import rounds  # noqa: E402

BATCHES = (1, 4, 16, 64)
WAYS = {"Jacobi": 1, "GS-Jacobi, 2 chunks": 2, "GS-Jacobi, 4 chunks": 4}
"""Row -> chunks of the block that takes most iterations; the others are one chunk."""
HEAD = ("samples", "way", "passes", "positions", "ms", "speed-up (95 %)", "PSNR dB")


def measure(flow: TarFlow, batch: int, turns: int) -> dict[str, Any]:
    """Every way on `batch` samples; the plans are made from other noise."""
    blocks = list(reversed(flow.blocks))
    turned = [block.backward for block in blocks]
    drawn = torch.Generator().manual_seed(batch)
    calibration, noise = (torch.randn(n, 16, 48, generator=drawn) for n in (8, batch))
    plans = {
        name: planned(blocks, calibration, chunks, clamp=None, backward=turned)
        for name, chunks in WAYS.items()
    }
    exact, work = sample(blocks, noise, [SEQUENTIAL] * len(blocks), turned)
    found = {"one after another": {"passes": sum(w.passes for w in work)}}
    found["one after another"]["positions"] = sum(w.positions for w in work)

    def timed(plan: Sequence[Inversion]) -> Callable[[], float]:
        def call() -> float:
            start = time.process_time()
            sample(blocks, noise, plan, turned)
            return time.process_time() - start

        return call

    plain = timed([SEQUENTIAL] * len(blocks))
    taken = rounds(plain, {name: timed(plan) for name, plan in plans.items()}, least=turns)
    for name, plan in plans.items():
        made, work = sample(blocks, noise, plan, turned)
        error = (picture(made) - picture(exact)).square().mean((1, 2, 3)).clamp_min(1e-10)
        ratio, seconds = taken[name].interval(), taken[name]
        found["one after another"]["ms"] = 1000 * float(np.median(seconds.first_s))
        found[name] = {
            "passes": sum(w.passes for w in work),
            "positions": sum(w.positions for w in work),
            "ms": 1000 * float(np.median(seconds.second_s)),
            "speedup": 1 / ratio.estimate,
            "speedup_low": 1 / ratio.high,
            "speedup_high": 1 / ratio.low,
            "psnr": float((-10 * error.log10()).mean()),
            "turns": turns,
        }
    return found


def lines(batch: int, found: dict[str, Any]) -> list[list[str]]:
    """Of the table."""
    said = []
    for name, f in found.items():
        ratio, psnr = "1", "–"
        if "speedup" in f:
            ratio = f"{f['speedup']:.2f} ({f['speedup_low']:.2f}–{f['speedup_high']:.2f})"
            psnr = f"{f['psnr']:.1f}"
        counts = [str(f["passes"]), str(f["positions"]), f"{f['ms']:.1f}"]
        said.append([str(batch), name, *counts, ratio, psnr])
    return said


def main(
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 30,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "gs_jacobi.json"
    ),
) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    cells, flow = Cells(out), trained()
    table: list[list[str]] = []
    for batch in BATCHES:
        found = cells.run(lambda b=batch: measure(flow, b, turns), samples=batch, tokens=16)
        table += lines(batch, found)
    Console(width=120).print(page.terminal("Inverting a TarFlow", HEAD, table))
    out.with_suffix(".md").write_text(
        "# Inverting a causal autoregressive flow\n\nMade by `python benchmarks/gs_jacobi.py`: "
        "the TarFlow of `pipelines/tiny/tarflow.py`, 4 blocks over 16 positions, trained for 150 "
        "steps on pictures of shapes. Processor time on one thread, median. *Passes* are "
        "evaluations of a block one after another, *positions* those evaluated over all passes; "
        "PSNR is between pictures and those of the exact inverse.\n\n"
        + page.markdown(HEAD, table)
        + page.provenance(cells)
    )


if __name__ == "__main__":
    typer.run(main)
