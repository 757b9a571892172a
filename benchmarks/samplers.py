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
from diffusers import FlowMatchEulerDiscreteScheduler
from rich.console import Console

from accel.pipelines.tiny import call_defaults, load, path
from accel.samplers import AdamsBashforth
from accel.samplers.level_fit import best_nodes
from benchmarks.cells import Cells
from benchmarks.green import ROOT
from benchmarks.options import CACHE
from benchmarks.samplers_report import write
from benchmarks.shapes import Model
from benchmarks.solvers import Solver, solvers

BUDGETS = (*range(4, 21), 25, 30, 40, 50)
FEW = (5, 7, 9, 12, 15, 20)
GRIDS = ("model", "uniform", "sway", "log-snr")
SCALES = torch.logspace(-1.5, 0.7, 64, dtype=torch.float64)
"""Standard deviations of the Gaussian, a channel each: 0.03 to 5."""
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
RESULTS = ROOT / "benchmarks" / "results"
console = Console(width=170)


def noise(seed: int, count: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, len(SCALES), generator=generator, dtype=torch.float64)


def velocity(x: torch.Tensor, g: float) -> torch.Tensor:
    """Of the flow whose data is N(0, SCALES^2)."""
    variance = (1 - g) ** 2 * SCALES**2 + g * g
    return (g - (1 - g) * SCALES**2) / variance * x


def sampled(scheduler: Any, steps: int, x: torch.Tensor) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(velocity(x, float(t) / 1000), t, x, return_dict=False)[0]
    return x


def fitted(count: int) -> list[float]:
    """Levels fitted to runs of 50 steps from other noise than is judged on."""
    scheduler, x, seen = (
        AdamsBashforth.from_config(FLOW.config, order=3, correct=True),
        noise(1),
        [],
    )
    scheduler.set_timesteps(50)
    levels = np.array([float(t) / 1000 for t in scheduler.timesteps])
    for g, t in zip(levels, scheduler.timesteps, strict=True):
        seen.append(velocity(x, g).flatten())
        x = scheduler.step(velocity(x, g), t, x, return_dict=False)[0]
    stacked = torch.stack(seen)
    gram = (stacked @ stacked.T / stacked.shape[1]).numpy()
    return [float(levels[i]) for i in best_nodes(levels, gram, count)]


def gaussian(solver: Solver, grid: str, levels: dict[int, list[float]]) -> dict[str, Any]:
    """Relative errors by evaluations (None where not finite), and the order at 99 to 199."""
    x = noise(0)
    exact = x * SCALES

    def error(evaluations: int) -> float | None:
        steps = solver.steps(evaluations)
        if steps is None or (grid == "fitted" and steps not in levels):
            return None
        on = {"grid": grid}
        found = sampled(solver.make(FLOW.config, on | _levels(grid, levels, steps)), steps, x)
        away = float((found - exact).norm() / exact.norm())
        return away if np.isfinite(away) else None

    errors = {str(n): error(n) for n in BUDGETS}
    ends = [error(n) for n in (99, 199)] if grid == "uniform" else [None, None]
    order = None if None in ends else float(np.log(ends[0] / ends[1]) / np.log(199 / 99))
    return {"errors": errors, "order": order}


def _levels(grid: str, levels: dict[int, list[float]], steps: int) -> dict[str, Any]:
    return {"levels": levels[steps]} if grid == "fitted" else {}


def of_model(name: str, count: int, kept: Path) -> Callable[[Solver, str], dict[str, Any]]:
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

    def measure(solver: Solver, grid: str) -> dict[str, Any]:
        if not reference:
            file = kept / f"{name}-{model.checkpoint[:12]}-{count}-latents.npy"
            if not file.exists():
                made = latents(AdamsBashforth.from_config(own.config), 1000)
                kept.mkdir(parents=True, exist_ok=True)
                np.save(file, made.numpy())
            reference.append(torch.from_numpy(np.load(file)))
        exact, errors = reference[0], {}
        for evaluations in FEW:
            steps = solver.steps(evaluations)
            if steps is None:
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
    references: Annotated[Path, typer.Option(help="Where latents to compare with lie.")] = CACHE,
    out: Annotated[Path, typer.Option(help="Results; .md, .png beside.")] = (
        RESULTS / "samplers.json"
    ),
) -> None:
    """Measure what is missing, then write tables and pictures."""
    torch.set_num_threads(1)
    cells, until = Cells(out), time.monotonic() + 60 * minutes

    def levels() -> dict[str, Any]:
        return {str(n): fitted(n) for n in BUDGETS if n <= 20}

    found = cells.run(levels, part="levels", data="gaussian")
    chosen = {int(n): each for n, each in found.items()}
    for each in solvers():
        for on in (*GRIDS, "fitted"):
            cells.run(
                lambda s=each, g=on: gaussian(s, g, chosen),
                part="errors",
                data="gaussian",
                by=each.by,
                solver=each.name,
                grid=on,
            )
    for name in model or ():
        measure = of_model(name, samples, references)
        for on in grid or GRIDS:
            for each in solvers():
                if (solver and each.name not in solver) or time.monotonic() > until:
                    continue
                console.log(f"{name}: {each.name} on {on}")
                cells.run(
                    lambda s=each, g=on, m=measure: m(s, g),
                    part="errors",
                    data=f"{name}, {samples} samples",
                    by=each.by,
                    solver=each.name,
                    grid=on,
                )
    write(cells, console)


if __name__ == "__main__":
    typer.run(main)
