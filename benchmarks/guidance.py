"""What leaving out the unconditional branch saves, and at what price, beside fewer plain steps.

Every guidance method on both shipped models, with the solver each ships with: work, speed-up, PSNR
and SSIM to the plain run of as many steps, adherence by the exact checker. Run as
`python benchmarks/guidance.py`; an interrupted run goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
import typer  # noqa: E402

from accel.method import Method  # noqa: E402
from accel.samplers import (  # noqa: E402
    AdaptiveGuidance,
    GuidedSteps,
    HeldGuidance,
    IntervalGuidance,
)
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
from benchmarks.settings import OWN, Setting  # noqa: E402
from benchmarks.shapes import Model  # noqa: E402

STEPS = {"shapes-t2i": 25, "shapes-t2v": 20}
SCALES = (2.0, 4.0)
"""Guidance as the models ship, and stronger, where less of it may be wanted."""
CALIBRATED = "GuidedSteps, calibrated"
FOLDERS = ("accel", "samplers")
"""Sources of what is measured."""
TESTS = ("tests/samplers/test_guidance.py",)


def ways(steps: int) -> dict[str, Method]:
    """What is tried in runs of so many steps, by the name of its row; the calibrated one apart."""
    half = steps // 2
    return {
        "HeldGuidance, every 2nd": HeldGuidance(2),
        "HeldGuidance, every 3rd": HeldGuidance(3),
        "HeldGuidance, every 5th": HeldGuidance(5),
        "HeldGuidance, last output": HeldGuidance(2, hold="output"),
        "HeldGuidance, nothing held": HeldGuidance(2, hold="nothing"),
        "IntervalGuidance, as published": IntervalGuidance(),
        "IntervalGuidance, from the first step": IntervalGuidance(0.28, float("inf")),
        "AdaptiveGuidance, as published": AdaptiveGuidance(),
        "AdaptiveGuidance, 0.9976": AdaptiveGuidance(0.9976),
        "GuidedSteps, first half": GuidedSteps(tuple(range(half)), steps),
        "GuidedSteps, every other": GuidedSteps(tuple(range(0, steps, 2)), steps),
        "GuidedSteps, last half": GuidedSteps(tuple(range(steps - half, steps)), steps),
    }


def guided_by(model: Model, scale: float) -> Model:
    """The model, called with another guidance scale."""
    return Model(model.name, model.pipe, model.folder, {**model.options, "guidance_scale": scale})


def settings(judge: Judge, row: list[str] | None) -> Iterator[Setting]:
    """Every row that is wanted, the calibrated one fitted when it is asked for."""
    methods = ways(judge.steps)
    for name in (*methods, CALIBRATED):
        if name in (row or [name]):
            method = judge.fitted("GuidedSteps") if name == CALIBRATED else methods[name]
            yield Setting(name, method, OWN, judge.steps)


INTRODUCTION = f"""# Guidance that costs less

Made by `python benchmarks/guidance.py`; every number is in the JSON file beside this page.

{COLUMNS} Guidance that is left out on purpose moves a sample away from the plain run:
judge it by adherence, beside plain runs of as much work.

"""


def main(
    models: Both = None,
    folder: Folders = None,
    scale: Annotated[list[float] | None, typer.Option(help="Guidance; 2 and 4 if none.")] = None,
    row: Rows = None,
    samples: Annotated[int, typer.Option(help="Captions; 256 or more tell adherence apart.")] = 64,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 7,
    workers: Workers = 2,
    batch: Batch = 4,
    minutes: Minutes = 1e9,
    tests: Tests = True,
    report_only: ReportOnly = False,
    references: References = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "guidance.json"
    ),
) -> None:
    """Measure what is missing, then write the tables."""
    torch.set_num_threads(1)
    elsewhere = places(folder)
    until, cells = time.monotonic() + 60 * minutes, Cells(out)
    if tests and not report_only:
        green(TESTS, out.parent, FOLDERS)
    for name in () if report_only else models or STEPS:
        model = load(name, elsewhere.get(name))
        for each in scale or SCALES:
            judge = Judge(
                guided_by(model, each),
                cells,
                references,
                workers=workers,
                batch=batch,
                steps=STEPS[name],
                under=f"guidance {each:g}",
            )
            measure(judge, settings(judge, row), samples, turns, until)
    write(cells, out, INTRODUCTION)


if __name__ == "__main__":
    typer.run(main)
