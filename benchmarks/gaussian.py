"""Samplers on Gaussian data, whose velocity, exact solution and distribution are known."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from accel.samplers import SRDS, AdamsBashforth, ParaDiGMS
from accel.samplers.grids import EPSS
from accel.samplers.level_fit import best_nodes
from accel.samplers.levels import Level
from accel.samplers.parallel import Ask
from benchmarks.solvers import Solver

BUDGETS = (*range(4, 21), 25, 30, 40, 50)
FITTED = 20
"""Most levels that are fitted."""
SCALES = torch.logspace(-1.5, 0.7, 64, dtype=torch.float64)
"""Standard deviations of the Gaussian, a channel each: 0.03 to 5."""
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
Levels = Mapping[int, list[float]]


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


@contextlib.contextmanager
def impulses(scheduler: Any) -> Iterator[None]:
    """The k-th noise that `scheduler` draws is 1 in row k, and 0 in all others."""
    used, drawn = type(scheduler).step.__globals__, itertools.count(1)

    def one(shape: Any, **_: Any) -> torch.Tensor:
        found = torch.zeros(shape, dtype=torch.float64)
        found[next(drawn)] = 1
        return found

    before, used["randn_tensor"] = used["randn_tensor"], one
    try:
        yield
    finally:
        used["randn_tensor"] = before


def off(solver: Solver, steps: int, on: Mapping[str, Any], x: torch.Tensor) -> float | None:
    """Relative error of what a solver makes of `x`; None where that is not finite.

    Of a random solver the distance, by standard deviations, of the distribution that it samples: it
    is linear in its noise, so that the answers to a 1 in each noise give the variance exactly. For
    one that draws nothing both numbers are the same, up to the sample of x.
    """
    scheduler, exact = solver.make(FLOW.config, on), x * SCALES
    try:
        scheduler.set_timesteps(steps)
    except ValueError:
        if solver.name != "Restart":
            raise
        return None  # no level of so few steps lies within its interval
    if not solver.random:
        found = sampled(scheduler, steps, x)
    else:
        rows = torch.zeros(2 * steps + 20, len(SCALES), dtype=torch.float64)
        rows[0] = 1
        with impulses(scheduler):
            found = sampled(scheduler, steps, rows).square().sum(0).sqrt()
        exact = SCALES
    away = float((found - exact).norm() / exact.norm())
    return away if np.isfinite(away) else None


def fitted(count: int) -> list[float]:
    """Levels fitted to runs of 50 steps from other noise than is judged on."""
    scheduler = AdamsBashforth.from_config(FLOW.config, order=3, correct=True)
    x, seen = noise(1), []
    scheduler.set_timesteps(50)
    levels = np.array([float(t) / 1000 for t in scheduler.timesteps])
    for g, t in zip(levels, scheduler.timesteps, strict=True):
        seen.append(velocity(x, g).flatten())
        x = scheduler.step(velocity(x, g), t, x, return_dict=False)[0]
    stacked = torch.stack(seen)
    gram = (stacked @ stacked.T / stacked.shape[1]).numpy()
    return [float(levels[i]) for i in best_nodes(levels, gram, count)]


def candidates(steps: int) -> list[list[float]]:
    """Levels among which each solver's own are picked: shifts of a flow, and Karras's rule."""
    even = np.linspace(1, 0, steps + 1)[:-1]
    found = [shift * even / (1 + (shift - 1) * even) for shift in np.geomspace(0.3, 12, 12)]
    for rho, top, low in itertools.product((3, 7, 50), (0.98, 0.999), (0.002, 0.01, 0.04)):
        ends = [(g / (1 - g)) ** (1 / rho) for g in (top, low)]
        sigmas = np.linspace(*ends, steps) ** rho
        found.append(sigmas / (1 + sigmas))
    return [each.tolist() for each in found]


def picked(solver: Solver, steps: int) -> dict[str, Any]:
    """The grid of the candidates that serves this solver best, on other noise than is judged on."""
    x, best = noise(1, 4), (float("inf"), candidates(steps)[0])
    for levels in candidates(steps):
        error = off(solver, steps, {"grid": "fitted", "levels": levels}, x)
        if error is not None and error < best[0]:
            best = error, levels
    return {"grid": "fitted", "levels": best[1]}


def errors_of(solver: Solver, grid: str, levels: Levels) -> dict[str, Any]:
    """Relative errors by evaluations (None where there is none), and the order at 99 to 199."""
    x = noise(0)

    def error(evaluations: int) -> float | None:
        steps = solver.steps(evaluations)
        missing = grid == "fitted" and steps not in levels
        if steps is None or missing or (grid == "epss" and steps not in EPSS):
            return None
        if grid == "picked":
            return off(solver, steps, picked(solver, steps), x) if steps <= FITTED else None
        on = {"levels": levels[steps]} if grid == "fitted" else {}
        return off(solver, steps, {"grid": grid} | on, x)

    errors = {str(n): error(n) for n in BUDGETS}
    ends = [error(n) for n in (99, 199)] if grid == "uniform" else [None, None]
    order = None
    if ends[0] and ends[1]:
        order = float(np.log(ends[0] / ends[1]) / np.log(199 / 99))
    return {"errors": errors, "order": order}


def _euler(ask: Ask, grid: list[Level]) -> torch.Tensor:
    now, then = grid[ask.start].g, grid[ask.end].g
    return ask.state + (then - now) * velocity(ask.state, now)


def side_by_side(method: ParaDiGMS | SRDS, steps: int) -> dict[str, Any]:
    """Rounds and evaluations that parallel sampling takes, and what it is off by."""
    euler, x = FlowMatchEulerDiscreteScheduler.from_config(FLOW.config), noise(0)
    euler.set_timesteps(steps)
    grid = [Level(1 - g, g) for g in euler.sigmas.tolist()]
    algorithm = method.algorithm(grid, x)
    asks, sizes = next(algorithm), []
    while True:
        sizes.append(len(asks))
        try:
            asks = algorithm.send([_euler(ask, grid) for ask in asks])
        except StopIteration as stop:
            end, near = stop.value
            break
    plain, exact = sampled(euler, steps, x), x * SCALES
    return {
        "rounds": len(sizes),
        "evaluations": sum(sizes),
        "near": near,
        "error": float((end - exact).norm() / exact.norm()),
        "error_plain": float((plain - exact).norm() / exact.norm()),
        "away": float((end - plain).norm() / plain.norm()),
    }
