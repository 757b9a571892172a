"""How far is each sampler from the exact solution, for as many evaluations of the model?

`python -m benchmarks.samplers` goes on where it stopped and writes results/samplers.{json,md,png}.
On Gaussian data the exact solution is known; `--model shapes-t2v` compares latents with those of
1,000 evaluations. Every solver runs on every grid of noise levels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from accel.pipelines.tiny import call_defaults, load, path
from accel.samplers import SRDS, AdamsBashforth, ParaDiGMS
from accel.samplers.grids import EPSS
from benchmarks.cells import Cells
from benchmarks.gaussian import BUDGETS, FITTED, errors_of, fitted, side_by_side
from benchmarks.green import ROOT, green, sources
from benchmarks.options import CACHE, Tests
from benchmarks.samplers_report import GAUSSIAN, SPREAD, write
from benchmarks.shapes import Model
from benchmarks.solvers import Solver, solvers

FEW = (5, 7, 9, 12, 15, 20)
REST = (4, 25, 30, 40, 50)
"""Other evaluations of shipped models, on their own levels alone."""
GRIDS = ("model", "uniform", "sway", "log-snr", "epss")
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


def of_model(name: str, count: int, kept: Path) -> Callable[..., dict[str, Any]]:
    """What measures a solver on a shipped model: relative errors of latents, over `count` samples.

    The reference, 1,000 evaluations of second-order Adams-Bashforth, is made once and kept.
    """
    model = Model(name, load(name), path(name), call_defaults(name))
    samples, own = model.samples("evaluation", count), model.pipe.scheduler

    def latents(scheduler: Any, steps: int) -> torch.Tensor:
        model.pipe.scheduler = scheduler
        try:
            return torch.as_tensor(model.call(model.pipe, steps, samples, "latent")).double()
        finally:
            model.pipe.scheduler = own

    reference: list[torch.Tensor] = []

    def measure(solver: Solver, grid: str, budgets: tuple[int, ...] = FEW) -> dict[str, Any]:
        if not reference:
            file = kept / f"{name}-{model.checkpoint[:12]}-{count}-latents.npy"
            if not file.exists():
                made = latents(AdamsBashforth.from_config(own.config), 1000)
                kept.mkdir(parents=True, exist_ok=True)
                np.save(file, made.numpy())
            reference.append(torch.from_numpy(np.load(file)))
        exact, errors = reference[0], {}
        for evaluations in budgets:
            steps = solver.steps(evaluations)
            if steps is None or (grid == "epss" and steps not in EPSS):
                continue
            found = latents(solver.make(own.config, {"grid": grid}), steps)
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
        measure = of_model(name, samples, references)
        flow = bool(AdamsBashforth.from_config(load(name).scheduler.config).flow)
        for on in grid or (GRIDS if flow else (*GRIDS, *LISTED)):
            for each in solvers(flow):
                if (solver and each.name not in solver) or time.monotonic() > until:
                    continue
                if each.random or (each.own and on != "model"):
                    continue
                console.log(f"{name}: {each.name} on {on}")
                fields = {"part": "errors", "data": f"{name}, {samples} samples"}
                fields |= {"by": each.by, "solver": each.name, "grid": on}
                cells.run(lambda s=each, g=on, m=measure: m(s, g), **fields)
                if on == "model":
                    cells.run(lambda s=each, m=measure: m(s, "model", REST), **fields, budgets=REST)
    write(cells, console)


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
