"""What region-adaptive sampling saves, and at what price, beside plain runs of as much time.

Runs of 28 steps of flow Euler; shares of the tokens computed per step 0.5, 0.35, 0.25, 0.125. Run
as `python benchmarks/regions.py --model shapes-t2v`; an interrupted run goes on where it was.
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

from accel.pipelines import tiny  # noqa: E402
from accel.samplers import RegionAdaptive  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity import RESULTS, load  # noqa: E402
from benchmarks.green import green, sources  # noqa: E402
from benchmarks.judge import Judge  # noqa: E402
from benchmarks.options import (  # noqa: E402
    CACHE,
    Batch,
    Folders,
    Minutes,
    References,
    ReportOnly,
    Rows,
    Tests,
    Workers,
    places,
)
from benchmarks.regions_report import (  # noqa: E402
    AT,
    MODELS,
    RATIOS,
    STEPS,
    best,
    equal_time,
    equal_work,
    text,
)
from benchmarks.rounds import rounds  # noqa: E402
from benchmarks.settings import Setting, plain, ready  # noqa: E402
from benchmarks.shapes import Model  # noqa: E402

SAMPLER = "euler"
TESTS = ("tests/samplers/test_region_adaptive.py", "tests/samplers/test_region_selection.py")
console = Console(width=170)


def ways(ratio: float, moving: bool) -> dict[str, RegionAdaptive]:
    """Settings at a share of the tokens, by the name of their row."""
    found = {
        "lowest scores, as published": RegionAdaptive(ratio),
        "highest scores": RegionAdaptive(ratio, high=0.0),
        "in turn": RegionAdaptive(ratio, high=0.0, strength=5.0, end=0.9),
        "by error": RegionAdaptive.by_error(ratio),
        "by error, tiles": RegionAdaptive.by_error(ratio, tile=(1, 2, 2)),
    }
    if moving:
        found["by error, over time"] = RegionAdaptive.by_error(ratio, continuity=0.5)
    return found


def described(name: str, method: RegionAdaptive) -> Setting:
    """`method` as a setting the judge knows."""
    return Setting(name, method, SAMPLER, STEPS)


class Timer:
    """Processor seconds of one sample's run, without decoding, and what its report says."""

    def __init__(self, model: Model, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.work, self.share = 1.0, 1.0
        self._sample = model.samples("sweep", 1)

    def __call__(self) -> float:
        with ready(self.model.pipe, self.setting) as pipe:
            marks: list[float] = []

            def after(pipe: Any, index: int, timestep: Any, values: dict) -> dict:
                marks.append(time.process_time())
                return values

            options = {**self.model.options, "callback_on_step_end": after}
            timed = Model(self.model.name, pipe, self.model.folder, options)
            timed.call(pipe, self.setting.steps, self._sample, "latent")
            first = marks[1] - marks[0]  # in place of the first step, which begins unseen
            if self.setting.method is not None and self.work == 1.0:
                report = pipe.acceleration.report()
                assert report.regions is not None
                self.work, self.share = report.computed_fraction, report.regions.share
            return marks[-1] - marks[0] + first


def measure(model: Model, settings: Sequence[Setting], least: int) -> dict[str, Any]:
    """Speed-up over the plain run, work, and how much of the bound was realised, of each."""
    timers = {s.row: Timer(model, s) for s in settings}
    calls: dict[str, Callable[[], float]] = dict(timers)
    taken = rounds(Timer(model, plain(SAMPLER, STEPS)), calls, least=least)
    found = {}
    for name, seconds in taken.items():
        ratio, timer = seconds.interval(), timers[name]
        found[name] = {
            "work": timer.work,
            "tokens": timer.share,
            "bound": 1 / timer.work,
            "speedup": 1 / ratio.estimate,
            "speedup_low": 1 / ratio.high,
            "speedup_high": 1 / ratio.low,
            "realised": timer.work / ratio.estimate,
            "seconds": float(np.median(seconds.second_s)),
            "plain_seconds": float(np.median(seconds.first_s)),
            "turns": len(seconds.ratios),
        }
    return found


def write(cells: Cells, out: Path) -> None:
    """The tables on the terminal, and the page beside `out`."""
    said, tables = text(cells)
    for table in tables:
        console.print(table)
    if cells.path.exists():
        out.with_suffix(".md").write_text(said)


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Which; those that are there if none.")
    ] = None,
    folder: Folders = None,
    ratio: Annotated[list[float] | None, typer.Option(help="Share of the tokens a step.")] = None,
    row: Rows = None,
    samples: Annotated[int, typer.Option(help="Samples judged.")] = 64,
    many: Annotated[
        int, typer.Option(help="Captions of the best row at 0.25 and its rival; 0: none.")
    ] = 0,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 7,
    workers: Workers = 2,
    batch: Batch = 4,
    minutes: Minutes = 1e9,
    tests: Tests = True,
    report_only: ReportOnly = False,
    references: References = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "regions.json"
    ),
) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    elsewhere = places(folder)
    until, cells = time.monotonic() + 60 * minutes, Cells(out)
    there = [name for name in MODELS if name in tiny.NAMES or name in elsewhere]
    passed = "skipped" if report_only or not tests else green(TESTS, out.parent)
    for name in () if report_only else models or there:
        model = load(name, elsewhere.get(name))
        judge = Judge(
            model, cells, references, sampler=SAMPLER, workers=workers, batch=batch, steps=STEPS
        )
        for share in ratio or RATIOS:
            settings = [
                described(label, method)
                for label, method in ways(share, model.moving).items()
                if label in (row or [label])
            ]
            if time.monotonic() > until:
                break
            console.log(f"{name}: {share:g} of the tokens, work and times")
            of = {
                "model": name,
                "checkpoint": model.checkpoint[:12],
                "set": "timing",
                "ratio": share,
                "rows": "; ".join(f"{s.row}: {s.method}" for s in settings),
            }
            known = [c for c in cells.cells.values() if of.items() <= c["fields"].items()]
            code = {"sources": sources(), "tests": passed}  # what was timed stays timed
            found = (
                known[-1]["result"]
                if known
                else cells.run(lambda s=settings, m=model: measure(m, s, turns), **of, **code)
            )
            equal = {as_much(way) for way in found.values() for as_much in (equal_work, equal_time)}
            for setting in [*settings, *(plain(SAMPLER, n) for n in sorted(equal))]:
                if time.monotonic() > until:
                    break
                console.log(f"{name}: {share:g}: {setting.row}: {setting}")
                judge.evaluate(setting, share, samples)
        chosen = best(cells, name, AT) if many else None
        if chosen is not None:
            label, steps = chosen
            own = described(label, ways(AT, model.moving)[label])
            for setting in (own, plain(SAMPLER, steps)):
                if time.monotonic() < until:
                    console.log(f"{name}: {AT:g}: {setting.row}: {setting}, {many} captions")
                    judge.evaluate(setting, AT, many)
    write(cells, out)


if __name__ == "__main__":
    typer.run(main)
