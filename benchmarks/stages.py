"""What a part of the steps at a lower resolution saves, and at what price, beside fewer steps.

`ResolutionStages` and `RegionUpsampling` with 28 steps of flow Euler, the latter also with as few
as released, on `shapes-mmdit`, which was trained at the size it runs at and at half of it, and on
`shapes-t2v`, which knows one size. Run as `python benchmarks/stages.py`; an interrupted run goes on
where it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
import typer  # noqa: E402

from accel.samplers import RegionUpsampling, ResolutionStages  # noqa: E402
from benchmarks.beside_fewer import COLUMNS, measure, write  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity import RESULTS, load  # noqa: E402
from benchmarks.green import green  # noqa: E402
from benchmarks.judge import Judge  # noqa: E402
from benchmarks.options import (  # noqa: E402
    CACHE,
    Batch,
    Both,
    Folders,
    Minutes,
    References,
    ReportOnly,
    Rows,
    Tests,
    Workers,
    places,
)
from benchmarks.settings import Setting  # noqa: E402

MODELS = ("shapes-mmdit", "shapes-t2v")
SAMPLER, STEPS = "euler", 28
WAYS = {
    "three quarters, then whole (LightX2V)": ResolutionStages(),
    "whole, three quarters, whole (bottleneck)": ResolutionStages((1.0, 0.75, 1.0), (0.2, 0.7)),
    "half for a quarter of the steps": ResolutionStages((0.5, 1.0), (0.25,)),
    "half for half of the steps": ResolutionStages((0.5, 1.0)),
    "half for half of the steps, unshifted": ResolutionStages((0.5, 1.0), shift=1.0),
    "half for three quarters of the steps": ResolutionStages((0.5, 1.0), (0.75,)),
    "half, then edges, then whole (RALU)": RegionUpsampling(),
    "half, then edges of latents, then whole": RegionUpsampling(edges="latents"),
}
RELEASED = {
    "RALU as released for 4x": (RegionUpsampling(), 18),
    "RALU as released for 7x": (
        RegionUpsampling((2, 3, 5), (0.2, 0.3, 1.0), (8.141, 2.856, 2.193), 6.261, 0.1),
        10,
    ),
}
"""Row -> method and its own number of steps, of the plain run's 28."""
FOLDERS = ("accel", "samplers")
"""Sources of what is measured."""
TESTS = ("tests/samplers/test_resolution.py", "tests/samplers/test_region_upsampling.py")
INTRODUCTION = f"""# Low resolution first

Made by `python benchmarks/stages.py`; every number is in the JSON file beside this page.

Runs of {STEPS} steps of flow Euler. {COLUMNS} Stages draw noise anew
where the resolution changes, so that a sample is another one than that of the plain run: judge them
by adherence, beside plain runs of as much work.

"""


def main(
    models: Both = None,
    folder: Folders = None,
    row: Rows = None,
    samples: Annotated[int, typer.Option(help="Captions.")] = 32,
    turns: Annotated[int, typer.Option(min=0, help="Times that everything is timed.")] = 5,
    workers: Workers = 2,
    batch: Batch = 4,
    minutes: Minutes = 1e9,
    tests: Tests = True,
    report_only: ReportOnly = False,
    references: References = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = RESULTS / "stages.json",
) -> None:
    """Measure what is missing, then write the tables."""
    torch.set_num_threads(1)
    elsewhere = places(folder)
    until, cells = time.monotonic() + 60 * minutes, Cells(out)
    if tests and not report_only:
        green(TESTS, out.parent, FOLDERS)
    for name in () if report_only else models or MODELS:
        judge = Judge(
            load(name, elsewhere.get(name)),
            cells,
            references,
            sampler=SAMPLER,
            workers=workers,
            batch=batch,
            steps=STEPS,
        )
        tried = {k: (way, STEPS) for k, way in WAYS.items()} | RELEASED
        ways = [Setting(k, m, SAMPLER, n) for k, (m, n) in tried.items() if k in (row or [k])]
        measure(judge, ways, samples, turns, until)
    write(cells, out, INTRODUCTION)


if __name__ == "__main__":
    typer.run(main)
