"""Every solver of ours and of diffusers, on a grid of noise levels put upon all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from accel.noise import is_flow
from accel.samplers import SOLVERS, AdamsBashforth

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "AB2": ("AdamsBashforth", {}),
    "AB3": ("AdamsBashforth", {"order": 3}),
    "AB2 corrected": ("AdamsBashforth", {"order": 2, "correct": True}),
    "AB3 corrected": ("AdamsBashforth", {"order": 3, "correct": True}),
    "AB4 corrected": ("AdamsBashforth", {"order": 4, "correct": True}),
    "PseudoCorrector": ("PseudoCorrector", {}),
    "STORK": ("STORK", {}),
    "DPMSolver 2M": ("DPMSolver", {"order": 2}),
    "DPMSolver 3M": ("DPMSolver", {"order": 3}),
    "UniPC 2": ("UniPC", {"order": 2}),
    "UniPC 3": ("UniPC", {"order": 3}),
}
THEIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "Euler": (FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler, {}),
    "Heun": (FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler, {}),
    "DPM++ 2M": (DPMSolverMultistepScheduler,) * 2 + ({"solver_order": 2},),
    "DPM++ 3M": (DPMSolverMultistepScheduler,) * 2 + ({"solver_order": 3},),
    "UniPC 2 (diffusers)": (UniPCMultistepScheduler,) * 2 + ({"solver_order": 2},),
    "UniPC 3 (diffusers)": (UniPCMultistepScheduler,) * 2 + ({"solver_order": 3},),
    "DEIS 3": (DEISMultistepScheduler,) * 2 + ({"solver_order": 3},),
    "SA-Solver, no noise": (SASolverScheduler,) * 2 + ({"tau_func": None},),
}
"""For a flow, for a model that preserves variance, settings."""


@dataclass(frozen=True)
class Solver:
    """One row: `make(config, grid)` gives its scheduler for the config of a model's own."""

    name: str
    by: str
    make: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]

    def steps(self, evaluations: int) -> int | None:
        """Steps that take so many evaluations; None where none do."""
        if self.name != "Heun":
            return evaluations
        return (evaluations + 1) // 2 if evaluations % 2 else None


def solvers() -> list[Solver]:
    """All rows, ours first."""
    return [_ours(n) for n in OURS] + [_theirs(n) for n in THEIRS]


def _ours(name: str) -> Solver:
    kind, options = OURS[name]
    return Solver(
        name, "ours", lambda config, grid: SOLVERS[kind].from_config(config, **options, **grid)
    )


def _theirs(name: str) -> Solver:
    flow_kind, kind, options = THEIRS[name]

    def make(config: Mapping[str, Any], grid: Mapping[str, Any]) -> Any:
        provider = AdamsBashforth.from_config(config, **grid)
        if not provider.flow:
            scheduler = kind.from_config(provider.config, **_settled(options))
        elif flow_kind is kind:
            flags = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
            scheduler = kind(**flags, **_settled(options))
        else:
            scheduler = flow_kind()
        return moved(scheduler, provider)

    return Solver(name, "diffusers", make)


def _settled(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: (_nothing if k == "tau_func" else v) for k, v in options.items()}


def _nothing(t: Any) -> float:
    """The amount of noise of SA-Solver: none."""
    return 0.0


def moved(scheduler: Any, provider: AdamsBashforth) -> Any:
    """`scheduler` with `set_timesteps` giving it the levels of `provider`."""
    begin = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None, **_: Any) -> None:
        begin(num_inference_steps, device=device)
        provider.set_timesteps(num_inference_steps, device=device)
        sigmas, times = provider.sigmas.clone(), provider.timesteps
        if is_flow(scheduler) and "FlowMatch" not in type(scheduler).__name__:
            sigmas = sigmas.clamp(max=1 - 1e-6)
        if isinstance(scheduler, DEISMultistepScheduler | SASolverScheduler):
            sigmas[-1] = 1e-4  # at 0 both yield NaN
        if scheduler.order == 2:
            sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
            times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
        scheduler.sigmas, scheduler.timesteps = sigmas, times

    scheduler.set_timesteps = set_timesteps
    return scheduler
