"""How near accelerated samples stay to plain ones, at 2 to 6 times fewer computed steps.

Both shipped models; every method of ours beside the peers at their best swept settings and plain
solvers with as few steps. PSNR and SSIM to the plain 50-step sample, adherence by the exact
checker, speed-up. Run as `python benchmarks/fidelity.py`; an interrupted run goes on where it was.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
import typer  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402
from rich.console import Console  # noqa: E402

from accel import plan_beside  # noqa: E402
from accel.pipelines import tiny  # noqa: E402
from accel.registry import recognise  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity_picture import draw  # noqa: E402
from benchmarks.fidelity_report import ALIKE, best_of, markdown, rows, table  # noqa: E402
from benchmarks.judge import Judge  # noqa: E402
from benchmarks.options import CACHE, Folders, Minutes, References, Workers, places  # noqa: E402
from benchmarks.settings import OWN, Setting  # noqa: E402
from benchmarks.shapes import Model  # noqa: E402
from benchmarks.sweep import EULER, PICTURE, RATIOS, VIDEO, Sweep  # noqa: E402

MODELS = ("shapes-t2i", "shapes-t2v")  # the quicker one first
RESULTS = Path(__file__).resolve().parent / "results"
console = Console(stderr=True)


class OutOfTime(Exception):
    """The time allowed is over; what is done is kept."""


class Bench:
    """All cells of one model with one solver, in order of importance.

    Args:
        sweeper: where settings are tried; the same as `judge`, or on an earlier checkpoint.
        until: of `time.monotonic`, s; no cell is begun after it.
    """

    def __init__(
        self,
        judge: Judge,
        sweeper: Judge,
        order: tuple[str, ...],
        ratios: tuple[int, ...],
        until: float,
    ) -> None:
        self._judge, self._sweeper = judge, sweeper
        self._order, self._ratios, self._until = order, ratios, until
        spaced = () if judge.model.moving else (":trailing", ":linspace")
        recipes = {}
        for name, make in recognise(judge.model.pipe)[0].recipes.items():
            plan = recipes[f"family recipe {name}"] = make()
            recipes[f"recipe {name}"] = plan_beside.find(judge.model.pipe, name) or plan
        self._sweep = Sweep(
            self._attempt,
            sweeper.magnitudes,
            judge.sampler,
            ("", *spaced),
            {row: plan.methods[0] for row, plan in recipes.items()},
            fitted=sweeper.fitted,
        )
        self.chosen: dict[tuple[str, int], Setting] = {}

    def _check(self, what: str) -> None:
        if time.monotonic() > self._until:
            raise OutOfTime
        console.log(f"{self._judge.model.name} ({self._judge.sampler}): {what}", highlight=False)

    def _attempt(self, setting: Setting):
        self._check(f"sweep {setting.row}: {setting}")
        return self._sweeper.attempt(setting)

    def sweep(self, ratio: int) -> None:
        """Choose a setting for every row at `ratio`."""
        for row in self._order:
            found = self._sweep.choose(row, ratio)
            if found is not None:
                self.chosen[row, ratio] = found

    def adopt(self, other: Bench) -> None:
        """Take the settings that another solver's sweep chose, instead of a sweep."""
        for (row, ratio), setting in other.chosen.items():
            if row in self._order:
                self.chosen[row, ratio] = replace(setting, sampler=self._judge.sampler)

    def evaluate(self, ratio: int, count: int) -> None:
        """Judge the settings chosen for `ratio` on `count` samples."""
        for row in self._order:
            if (row, ratio) in self.chosen:
                self._check(f"{count} samples at {ratio}x {row}: {self.chosen[row, ratio]}")
                self._judge.evaluate(self.chosen[row, ratio], ratio, count)

    def time(self, ratio: int, rounds: int) -> None:
        """Time the settings chosen for `ratio` turn about; plain solvers need none."""
        found = [s for (_, r), s in self.chosen.items() if r == ratio and s.by != "plain"]
        self._check(f"timing at {ratio}x")
        self._judge.time(found, ratio, rounds)

    def widen(self, cells: Cells, few: int, many: int) -> None:
        """Judge the best of ours at each ratio, and the best peer at 3x, on more samples.

        Also where adherence fell on few: of 16 samples, one at the checker's edge is more than the
        slack.
        """
        judged = rows(cells, self._judge.model.name, self._judge.sampler)
        best = {r: best_of(judged, r, fallen=True) for r in self._ratios}
        best[0] = best_of([r for r in judged if r.by != "plain"], 3, ours=False)
        for row in best.values():
            setting = self.chosen.get((row.row, row.ratio)) if row is not None else None
            if row is not None and setting is not None:
                self._check(f"{many} samples at {row.ratio}x {row.row}: {setting}")
                self._judge.evaluate(setting, row.ratio, many)


def main(
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Which; both if none.")
    ] = None,
    folder: Folders = None,
    sweep_folder: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH: choose settings on an earlier version.")
    ] = None,
    ratios: Annotated[list[int] | None, typer.Option("--ratio")] = None,
    only: Annotated[list[str] | None, typer.Option("--row", help="Rows of the table.")] = None,
    samples: Annotated[int, typer.Option(help="Samples on which a setting is judged.")] = ALIKE,
    many: Annotated[int, typer.Option(help="Samples for the best at each ratio.")] = 64,
    sweep_samples: Annotated[int, typer.Option(help="Samples on which settings are chosen.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 4,
    workers: Workers = 2,
    minutes: Minutes = 1e9,
    sweep_only: Annotated[bool, typer.Option(help="Only choose settings.")] = False,
    report_only: Annotated[bool, typer.Option(help="Only write table and picture.")] = False,
    references: References = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md and .png go beside.")] = (
        RESULTS / "fidelity.json"
    ),
) -> None:
    """Run what is missing, then write the table and the pictures."""
    torch.set_num_threads(1)
    elsewhere = places(folder)
    before = places(sweep_folder)
    until = time.monotonic() + 60 * minutes
    cells = Cells(out)
    chosen = tuple(ratios or RATIOS)
    try:
        for name in () if report_only else models or MODELS:
            model = load(name, elsewhere.get(name))
            earlier = load(name, before[name]) if name in before else model
            make = partial(
                Judge,
                cells=cells,
                folder=references,
                workers=workers,
                batch=4 if model.moving else 8,
                sweep_samples=sweep_samples,
            )
            judge, sweeper = make(model), make(earlier)
            order = VIDEO if model.moving else PICTURE
            rows_of = tuple(r for r in order if r in (only or order))
            bench = Bench(judge, sweeper, rows_of, chosen, until)
            for ratio in chosen:
                bench.sweep(ratio)
                if not sweep_only:
                    bench.evaluate(ratio, samples // 2)
                    bench.time(ratio, rounds)
            if sweep_only:
                continue
            for ratio in chosen:
                bench.evaluate(ratio, samples)
            if model.moving:
                euler = Bench(make(model, sampler="euler"), sweeper, EULER, chosen, until)
                euler.adopt(bench)
                for ratio in chosen:
                    euler.evaluate(ratio, samples)
            bench.widen(cells, samples, many)
    except OutOfTime:
        console.log("out of time; run again to go on")
    write(cells, out)


def load(name: str, place: str | None) -> Model:
    """A shipped model by its name, or another version of it from a folder."""
    options = tiny.call_defaults(name)
    if place is None:
        return Model(name, tiny.load(name), tiny.path(name), options)
    without = tiny.absent(Path(place))
    pipe = DiffusionPipeline.from_pretrained(place, torch_dtype=torch.float32, **without)
    return Model(name, pipe, Path(place), options)


def write(cells: Cells, out: Path) -> None:
    """The table on the terminal and beside the results, and a picture a model."""
    for name in MODELS:
        for sampler in (OWN, "euler"):
            found = rows(cells, name, sampler, ALIKE)
            if found:
                Console(width=160).print(table(found, f"{name}, {sampler} solver"))
        found = rows(cells, name, OWN, ALIKE)
        if found:
            draw(found, name, out.with_name(f"{out.stem}-{name}.png"))
    out.with_suffix(".md").write_text(markdown(cells, MODELS))


if __name__ == "__main__":
    typer.run(main)
