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
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402

from accel.method import Method  # noqa: E402
from accel.samplers import (  # noqa: E402
    AdaptiveGuidance,
    GuidedSteps,
    HeldGuidance,
    IntervalGuidance,
)
from benchmarks import page  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity import RESULTS, load  # noqa: E402
from benchmarks.green import green  # noqa: E402
from benchmarks.judge import Judge  # noqa: E402
from benchmarks.options import CACHE, Folders, Minutes, References, Workers, places  # noqa: E402
from benchmarks.settings import OWN, Setting, plain  # noqa: E402
from benchmarks.shapes import Model  # noqa: E402

STEPS = {"shapes-t2i": 25, "shapes-t2v": 20}
SCALES = (2.0, 4.0)
"""Guidance as the models ship, and stronger, where less of it may be wanted."""
CALIBRATED = "GuidedSteps, calibrated"
FOLDERS = ("accel", "samplers")
"""Sources of what is measured."""
TESTS = ("tests/samplers/test_guidance.py",)
console = Console(width=170)


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


def measure(judge: Judge, row: list[str] | None, samples: int, turns: int, until: float) -> None:
    """Judge and time every row, then plain runs of as much work."""
    methods = ways(judge.steps)
    wanted = [name for name in (*methods, CALIBRATED) if name in (row or [name])]
    work, settings = {}, []
    for name in wanted:
        if time.monotonic() > until:
            return
        console.log(f"{judge.model.name}, {judge.under}: {name}")
        method = judge.fitted("GuidedSteps") if name == CALIBRATED else methods[name]
        settings.append(Setting(name, method, OWN, judge.steps))
        work[name] = judge.evaluate(settings[-1], 1.0, samples)["means"]["work"]
    for count in sorted({max(round(judge.steps * share), 1) for share in work.values()}):
        if time.monotonic() > until:
            return
        settings.append(plain(OWN, count))
        console.log(f"{judge.model.name}, {judge.under}: {count} plain steps")
        judge.evaluate(settings[-1], 1.0, samples)
    if time.monotonic() < until:
        judge.time(settings, 1.0, turns)


HEAD = (
    *("row", "by", "n", "work", "speed-up (95 %)", "PSNR dB", "SSIM", "adherence"),
    *("change (95 % bound)", "all right", "setting"),
)


def rows(cells: Cells, model: str, under: str) -> Iterator[list[str]]:
    """Of one table, by work; of each setting the cell of most samples."""
    named = {"model": model, "under": under}
    mine = [c for c in cells.cells.values() if named.items() <= c["fields"].items()]
    times: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for cell in mine:
        fields = cell["fields"]
        if fields["set"] == "timing":
            times |= cell["result"]
        elif fields["set"] == "evaluation":
            key = f"{fields['row']}: {fields['setting']}"
            if key not in most or fields["samples"] >= most[key]["fields"]["samples"]:
                most[key] = cell
    for key, cell in sorted(most.items(), key=lambda one: -one[1]["result"]["means"]["work"]):
        fields, m = cell["fields"], cell["result"]["means"]
        own = times.get(key)
        speed = f"{own['speedup']:.2f} ({own['low']:.2f}–{own['high']:.2f})" if own else "–"
        yield [
            "fewer plain steps" if fields["by"] == "plain" else fields["row"],
            fields["by"],
            str(fields["samples"]),
            f"{m['work']:.1%}",
            speed,
            f"{m['psnr']:.2f}",
            f"{m['ssim']:.4f}",
            f"{m['share']:.2%}",
            f"{100 * m['adherence_change']:+.2f} ({100 * m['adherence_change_low']:+.2f})",
            f"{m['all_right']:.1%}",
            fields["setting"],
        ]


INTRODUCTION = """# Guidance that costs less

Made by `python benchmarks/guidance.py`; every number is in the JSON file beside this page.

*Work*: FLOPs of the denoiser over those of the plain run of as many steps. *Speed-up*: seconds of a
call without decoding, one sample on one thread, plain over accelerated, turn about; with its 95 %
interval. PSNR and SSIM compare decoded frames with that plain run; adherence is the share of the
caption's attributes that an exact checker finds right, its change paired by sample, with the
one-sided 95 % bound. Guidance that is left out on purpose moves a sample away from the plain run:
judge it by adherence, beside plain runs of as much work.

"""


def write(cells: Cells, out: Path) -> None:
    """The tables on the terminal, and the page beside `out`."""
    text = INTRODUCTION
    fields = [c["fields"] for c in cells.cells.values() if c["fields"].get("set") == "evaluation"]
    for model, under in dict.fromkeys((f["model"], f["under"]) for f in fields):
        lines = list(rows(cells, model, under))
        console.print(page.terminal(f"{model}, {under}", HEAD, lines))
        text += f"## {model}, {under}\n\n{page.markdown(HEAD, lines)}"
    if cells.path.exists():
        out.with_suffix(".md").write_text(text + page.provenance(cells))


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Which; both if none.")
    ] = None,
    folder: Folders = None,
    scale: Annotated[list[float] | None, typer.Option(help="Guidance; 2 and 4 if none.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Rows; all if none.")] = None,
    samples: Annotated[int, typer.Option(help="Captions; 256 or more tell adherence apart.")] = 64,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 7,
    workers: Workers = 2,
    batch: Annotated[int, typer.Option(help="Samples made in one go.")] = 4,
    minutes: Minutes = 1e9,
    tests: Annotated[bool, typer.Option("--tests/--skip-tests", help="While developing.")] = True,
    report_only: Annotated[bool, typer.Option(help="Only write the tables.")] = False,
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
            measure(judge, row, samples, turns, until)
    write(cells, out)


if __name__ == "__main__":
    typer.run(main)
