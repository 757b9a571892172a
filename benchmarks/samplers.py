"""How far is each sampler from the exact solution, for as many evaluations of the model?

`python -m benchmarks.samplers` goes on where it stopped and writes results/samplers.{json,md,png}.
On Gaussian data the exact solution is known; `--model shapes-t2v` compares latents with those of
1,000 evaluations. Every solver runs on every grid of noise levels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

import accel
from accel.pipelines.tiny import call_defaults, load, path
from accel.samplers import SRDS, AdamsBashforth, ParaDiGMS, Sampler
from accel.samplers.grids import EPSS
from benchmarks.cells import Cells
from benchmarks.gaussian import BUDGETS, FITTED, errors_of, fitted, side_by_side
from benchmarks.green import ROOT, green, sources
from benchmarks.options import CACHE, Tests
from benchmarks.samplers_report import GAUSSIAN, SPREAD, write
from benchmarks.shapes import SETS, Model
from benchmarks.solvers import Solver, solvers

FEW = (5, 7, 9, 12, 15, 20)
REST = (4, 25, 30, 40, 50)
"""Other evaluations of shipped models, on their own levels alone."""
GRIDS = ("model", "uniform", "sway", "log-snr", "epss")
FITTED_ON = 8
"""Full runs of 50 steps to which levels are fitted, of captions that nothing is judged on."""
LISTED = ("ays-sd", "ays-sdxl")
"""Grids of models that preserve variance only (that of SVD begins at levels they do not have)."""
PARALLEL = tuple(
    (each, steps)
    for steps in (16, 36, 100)
    for each in (ParaDiGMS(8, 0.1), ParaDiGMS(8, 0.01), ParaDiGMS(32, 0.01), SRDS(), SRDS(0.005))
)
FOLDERS = ("accel", "samplers")
"""Sources of what is measured."""
TESTS = tuple(
    f"tests/samplers/test_{name}.py"
    for name in ("integrators", "pseudo_corrector", "stochastic", "parallel")
)
RESULTS = ROOT / "benchmarks" / "results"
console = Console(width=170)


def levels_of(model: Model, steps: int) -> dict[str, Any]:
    """So many noise levels, fitted to a shipped model as `accel calibrate` does."""
    texts = [s.caption for s in model.samples("calibration", FITTED_ON)]
    how = {"steps": 50, "samples": FITTED_ON, "seed": SETS["calibration"], "progress": False}
    plan = accel.calibrate(model.pipe, texts, Sampler(steps=steps), **how, **model.options)
    (found,) = plan.methods
    return {"levels": list(found.levels)}


def of_model(model: Model, count: int, kept: Path) -> Callable[..., dict[str, Any]]:
    """What measures a solver on a shipped model: relative errors of latents, over `count` samples.

    The reference, 1,000 evaluations of second-order Adams-Bashforth, is made once and kept.
    """
    samples, own = model.samples("evaluation", count), model.pipe.scheduler

    def latents(scheduler: Any, steps: int) -> torch.Tensor:
        model.pipe.scheduler = scheduler
        try:
            return torch.as_tensor(model.call(model.pipe, steps, samples, "latent")).double()
        finally:
            model.pipe.scheduler = own

    reference: list[torch.Tensor] = []

    def measure(
        solver: Solver,
        grid: str,
        budgets: tuple[int, ...] = FEW,
        levels: Mapping[int, list[float]] | None = None,
    ) -> dict[str, Any]:
        if not reference:
            file = kept / f"{model.name}-{model.checkpoint[:12]}-{count}-latents.npy"
            if not file.exists():
                made = latents(AdamsBashforth.from_config(own.config), 1000)
                kept.mkdir(parents=True, exist_ok=True)
                np.save(file, made.numpy())
            reference.append(torch.from_numpy(np.load(file)))
        exact, errors = reference[0], {}
        for evaluations in budgets:
            steps = solver.steps(evaluations)
            known = {"epss": EPSS, "fitted": levels or {}}.get(grid)
            if steps is None or (known is not None and steps not in known):
                continue
            on = {"grid": grid} | ({"levels": levels[steps]} if levels else {})
            found = latents(solver.make(own.config, on), steps)
            errors[str(evaluations)] = float((found - exact).norm() / exact.norm())
        return {"errors": errors, "order": None}

    return measure


def main(
    model: Annotated[list[str] | None, typer.Option(help="Shipped models, besides.")] = None,
    samples: Annotated[int, typer.Option(help="Of each model, in one batch.")] = 4,
    grid: Annotated[list[str] | None, typer.Option(help="Of models; all if none.")] = None,
    solver: Annotated[list[str] | None, typer.Option(help="Of models; all if none.")] = None,
    minutes: Annotated[float, typer.Option(help="Begin no cell after this long.")] = 1e9,
    tests: Tests = True,
    references: Annotated[Path, typer.Option(help="Where latents to compare with lie.")] = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md, .png beside.")] = (
        RESULTS / "samplers.json"
    ),
) -> None:
    """Measure what is missing, then write tables and pictures."""
    torch.set_num_threads(1)
    cells, until = Cells(out), time.monotonic() + 60 * minutes
    if tests:
        passed = green(TESTS, out.parent, FOLDERS)
        named = {"part": "gate", "sources": sources(FOLDERS), "tests": passed}
        cells.run(lambda: {"passed": passed}, **named)
    of_gaussian(cells)
    for name in model or ():
        shipped = Model(name, load(name), path(name), call_defaults(name))
        measure = of_model(shipped, samples, references)
        flow = bool(AdamsBashforth.from_config(shipped.pipe.scheduler.config).flow)
        for on in grid or (*GRIDS, *(() if flow else LISTED), "fitted"):
            levels = fitted_to(cells, shipped) if on == "fitted" else None
            for each in solvers(flow):
                if (solver and each.name not in solver) or time.monotonic() > until:
                    continue
                if each.random or (each.own and on != "model"):
                    continue
                console.log(f"{name}: {each.name} on {on}")
                fields = {"part": "errors", "data": f"{name}, {samples} samples"}
                fields |= {"by": each.by, "solver": each.name, "grid": on}
                cells.run(lambda s=each, g=on, m=measure, v=levels: m(s, g, FEW, v), **fields)
                if on == "model":
                    cells.run(lambda s=each, m=measure: m(s, "model", REST), **fields, budgets=REST)
    write(cells, console)


def fitted_to(cells: Cells, model: Model) -> dict[int, list[float]]:
    """Levels fitted to a shipped model, by their number; each fitted once and kept."""
    data = f"{model.name}, {FITTED_ON} runs"
    return {
        n: cells.run(lambda n=n: levels_of(model, n), part="levels", data=data, steps=n)["levels"]
        for n in FEW
    }


def of_gaussian(cells: Cells) -> None:
    """Every solver on every grid, and parallel sampling."""

    def levels() -> dict[str, Any]:
        return {str(n): fitted(n) for n in BUDGETS if n <= FITTED}

    found = cells.run(levels, part="levels", data=GAUSSIAN)
    chosen = {int(n): each for n, each in found.items()}
    for each in solvers():
        for on in (*GRIDS, "fitted", "picked"):
            cells.run(
                lambda s=each, g=on: errors_of(s, g, chosen),
                part="errors",
                data=SPREAD if each.random else GAUSSIAN,
                by=each.by,
                solver=each.name,
                grid=on,
            )
    for method, steps in PARALLEL:
        cells.run(
            lambda m=method, n=steps: side_by_side(m, n),
            part="parallel",
            data=GAUSSIAN,
            method=repr(method),
            steps=steps,
        )


if __name__ == "__main__":
    typer.run(main)
