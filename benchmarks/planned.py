"""How near a plan fitted to the model comes to the full run, beside everything else at its cost.

Every shipped model: budgets of 50 and of 28 steps, other solvers, how plans age, how many
calibration samples they need. Run as `python benchmarks/planned.py`; an interrupted run goes on
where it was, and options choose a part, e.g. `--model shapes-t2v --solver euler --budget 12`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
import typer  # noqa: E402
from diffusers import FlowMatchEulerDiscreteScheduler  # noqa: E402
from rich.console import Console  # noqa: E402

from accel.pipelines import tiny  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.conditions import CONDITIONS, changed  # noqa: E402
from benchmarks.fidelity import RESULTS, OutOfTime, load  # noqa: E402
from benchmarks.judge import Judge  # noqa: E402
from benchmarks.options import CACHE, Folders, Minutes, Models, References, Workers, places  # noqa: E402
from benchmarks.planned_cells import ELSEWHERE, GUARDED, ROWS, Bench, label, sized  # noqa: E402
from benchmarks.planned_report import write  # noqa: E402
from benchmarks.settings import OWN, Setting, solver  # noqa: E402
from benchmarks.shapes import Model  # noqa: E402
from benchmarks.sweep import PICTURE, RECIPES, STEPS, VIDEO  # noqa: E402

BUDGETS = {STEPS: (18, 12, 8, 25, 14, 10, 6), 28: (10, 7, 14, 5)}
"""Steps of a run -> how many are computed, the most telling first."""
MODELS = ("shapes-t2v", "shapes-t2i", "shapes-mmdit")
PARTS = ("table", "ageing", "samples", "adherence")
AGED = (18, 12, 8)
COUNTS = (2, 4, 16)
FAITHFUL = 10
"""The budget at which adherence is told on many captions."""
console = Console(stderr=True)


class Work:
    """Everything there is to do for one model, in order of importance; each step is resumable.

    Args:
        make: makes a judge of a model; keywords are those of `Judge`.
        until: of `time.monotonic`, s; nothing is begun after it.
    """

    def __init__(self, model: Model, make: partial[Judge], until: float) -> None:
        self.model, self._make, self._until = model, make, until

    def check(self, what: str) -> None:
        if time.monotonic() > self._until:
            raise OutOfTime
        console.log(f"{self.model.name}: {what}", highlight=False)

    def bench(self, sampler: str = OWN, only: list[str] | None = None, **how: object) -> Bench:
        pipe = self.model.pipe
        order = [*(PICTURE if hasattr(pipe, "unet") else VIDEO)]
        euler = FlowMatchEulerDiscreteScheduler
        if isinstance(solver(pipe.scheduler, sampler), euler):
            # of other solvers with as few steps, the best there is
            order[order.index("euler with as few steps")] = "unipc with as few steps"
        rows = (r for r in order if r in (only or order) and r not in RECIPES)
        return Bench(self._make(self.model, sampler=sampler, **how), rows)

    def table(
        self,
        bench: Bench,
        budgets: tuple[int, ...],
        efforts: tuple[str, ...],
        count: int,
        rounds: int,
    ) -> None:
        """Plans of every effort, then the rivals, at every budget; then times."""
        judge, steps = bench.judge, bench.judge.steps
        planned: dict[int, list[Setting]] = {budget: [] for budget in budgets}
        for effort in efforts:
            for budget in budgets:
                self.check(f"{judge.sampler}: {ROWS[effort]}, {budget} of {steps}")
                plan = bench.plan(budget, effort=effort)
                bench.judged(plan, ROWS[effort], budget, count)
                planned[budget].append(bench.setting(plan, ROWS[effort]))
                if effort == "normal":
                    bench.judged(plan, GUARDED, budget, count, guard=True)
                    planned[budget].append(bench.setting(plan, GUARDED, guard=True))
        for budget in budgets:
            self.check(f"{judge.sampler}: rivals at {budget} of {steps}")
            rivals, left_out = bench.rivals(budget)
            for why in left_out:
                console.log(f"{judge.sampler}: left out: {why}", highlight=False)
            for setting in rivals:
                self.check(f"{judge.sampler}: {setting.row}: {setting}")
                judge.evaluate(setting, label(budget, steps), count)
            timed = [*planned[budget], *(s for s in rivals if s.by != "plain")]
            if rounds:
                judge.time(timed, label(budget, steps), rounds)

    def age(self, bench: Bench, budgets: tuple[int, ...], count: int) -> None:
        """Plans as they are under other conditions, beside plans made there anew."""
        for condition in CONDITIONS:
            with changed(self.model, condition) as other:
                steps = condition.steps or STEPS
                old, watched, unfitted, renewed = ELSEWHERE
                judge = self._make(other, under="" if condition.steps else condition.name)
                if condition.steps:
                    judge = self._make(other, steps=steps)
                there = Bench(judge)
                for budget in budgets:
                    self.check(f"{condition.name}: {budget} of {STEPS}")
                    plan, fewer = bench.plan(budget), -(-budget * steps // STEPS)
                    there.judged(plan, old, fewer, count)
                    if condition.steps is None:
                        there.judged(plan, watched, fewer, count, guard=True)
                    else:
                        bare = replace(plan, methods=(replace(plan.methods[0], weights=()),))
                        there.judged(bare, unfitted, fewer, count)
                    anew = there.plan(fewer)
                    there.judged(anew, renewed, fewer, count)

    def samples(self, bench: Bench, budgets: tuple[int, ...], count: int) -> None:
        """Plans from fewer and from more calibration samples."""
        for budget in budgets:
            for samples in COUNTS:
                self.check(f"{samples} calibration samples: {budget} of {STEPS}")
                plan = bench.plan(budget, samples)
                bench.judged(plan, f"Planned, {samples} samples", budget, count)


def chosen(wanted: list[int] | None, among: tuple[int, ...]) -> tuple[int, ...]:
    """Those of `among` that are wanted, or all."""
    return tuple(b for b in among if b in (wanted or among))


def grids(model: Model, solvers: list[str] | None, steps: list[int] | None) -> Iterator[tuple]:
    """(solver, steps) of the table: what the model ships with, and flow Euler on videos."""
    for sampler in (OWN, "euler") if model.moving else (OWN,):
        for total in BUDGETS:
            if sampler in (solvers or (OWN, "euler")) and total in (steps or BUDGETS):
                yield sampler, total


def main(
    models: Models = None,
    folder: Folders = None,
    solvers: Annotated[list[str] | None, typer.Option("--solver", help="own or euler.")] = None,
    steps: Annotated[list[int] | None, typer.Option(help="50 or 28.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Computed steps.")] = None,
    effort: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(ROWS)}.")] = None,
    part: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(PARTS)}.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Rivals; all if none.")] = None,
    no_rivals: Annotated[bool, typer.Option("--no-rivals", help="Only plans.")] = False,
    samples: Annotated[int, typer.Option(help="Held-out samples judged.")] = 16,
    many: Annotated[int, typer.Option(help="Captions on which adherence is told.")] = 1000,
    sweep_samples: Annotated[int, typer.Option(help="Samples on which rivals are set.")] = 4,
    rounds: Annotated[int, typer.Option(help="Times that everything is timed; 0 is not.")] = 4,
    workers: Workers = 2,
    minutes: Minutes = 1e9,
    report_only: Annotated[bool, typer.Option(help="Only write table and pictures.")] = False,
    references: References = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md and .png go beside.")] = (
        RESULTS / "planned.json"
    ),
) -> None:
    """Run what is missing, then write the table and the pictures."""
    torch.set_num_threads(1)
    elsewhere = places(folder)
    until = time.monotonic() + 60 * minutes
    cells = Cells(out, beside=[RESULTS / "fidelity.json"])
    parts, efforts = tuple(part or PARTS), tuple(effort or ROWS)
    try:
        there = [name for name in MODELS if name in tiny.NAMES]
        for name in () if report_only else models or there:
            model = sized(load(name, elsewhere.get(name)))
            make = partial(
                Judge,
                cells=cells,
                folder=references,
                workers=workers,
                batch=4 if model.moving else 8,
                sweep_samples=sweep_samples,
            )
            work = Work(model, make, until)
            only = ["none"] if no_rivals else row
            for sampler, total in grids(model, solvers, steps) if "table" in parts else ():
                bench = work.bench(sampler, only, steps=total)
                work.table(bench, chosen(budget, BUDGETS[total]), efforts, samples, rounds)
            if OWN in (solvers or [OWN]) and STEPS in (steps or [STEPS]):
                bench, aged = work.bench(), chosen(budget, AGED)
                if "samples" in parts:
                    work.samples(bench, aged, samples)
                if "ageing" in parts:
                    work.age(bench, aged, samples)
                if "adherence" in parts:
                    work.check(f"{many} captions at {FAITHFUL} of {STEPS}")
                    bench.judged(bench.plan(FAITHFUL), ROWS["normal"], FAITHFUL, many)
    except OutOfTime:
        console.log("out of time; run again to go on")
    write(cells, out)


if __name__ == "__main__":
    typer.run(main)
