"""Gaussian data, of which the best velocity is known: what a sampler should do is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

SCALES = torch.logspace(-1.5, 0.7, 32, dtype=torch.float64)
"""Standard deviations of the data, one per channel."""
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
SD = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
UNEVEN = [1.0, 0.97, 0.8, 0.77, 0.5, 0.42, 0.25, 0.1]


def predict(kind: str, x: torch.Tensor, signal: float, noise: float) -> torch.Tensor:
    """What the best model predicts for x = signal x0 + noise eps."""
    variance = signal**2 * SCALES**2 + noise**2
    x0, eps = signal * SCALES**2 / variance * x, noise / variance * x
    found = {"flow_prediction": eps - x0, "epsilon": eps, "sample": x0}
    return found[kind] if kind in found else signal * eps - noise * x0


def start(count: int = 8) -> torch.Tensor:
    return torch.randn(count, len(SCALES), generator=torch.Generator().manual_seed(0)).double()


def run(scheduler: Any, x: torch.Tensor, kind: str = "flow_prediction", **noise: Any):
    """From x at the first timestep of a run that was begun; the model is told timesteps alone."""
    for t in scheduler.timesteps:
        signal, level = 1 - float(t) / 1000, float(t) / 1000
        if kind != "flow_prediction":
            abar = float(np.interp(float(t), range(1000), SD.alphas_cumprod.double().numpy()))
            signal, level = abar**0.5, (1 - abar) ** 0.5
        x = scheduler.step(predict(kind, x, signal, level), t, x, return_dict=False, **noise)[0]
    return x


def refined(levels: list[float], times: int) -> list[float]:
    """An uneven grid (without its 0) with every gap cut into `times`: a smooth uneven family."""
    ends = [*levels, 0.0]
    places = np.linspace(0, len(levels), len(levels) * times + 1)
    return np.interp(places, range(len(ends)), ends)[:-1].tolist()


def order(make: Callable[[], Any], times: tuple[int, int] = (8, 16)) -> float:
    """Empirical order on an uneven grid and its refinement."""
    errors = []
    for each in times:
        scheduler = make()
        scheduler.set_timesteps(sigmas=refined(UNEVEN, each))
        x = start()
        errors.append(float((run(scheduler, x) - x * SCALES).norm()))
    return float(np.log(errors[0] / errors[1]) / np.log(times[1] / times[0]))
