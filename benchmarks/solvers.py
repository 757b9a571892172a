"""Every solver of ours and of diffusers, on a grid of noise levels put upon all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
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
    "ERSDE 2": ("ERSDE", {"order": 2}),
    "ERSDE 3": ("ERSDE", {}),
    "Restart": ("Restart", {}),
}
RANDOM = ("ERSDE 2", "ERSDE 3", "Restart", "DPM++ 2M SDE", "SA-Solver 2, noise")
"""Rows whose runs differ, so that only the spread of what they make can be right or wrong."""
ADDED = {"Restart": 6, "PNDM": 1}
"""Evaluations beyond one a step: Restart's default interval, PNDM's repeated second step."""
DOUBLED = ("Heun", "KDPM2")
"""Two evaluations a step, but one in the last."""


@dataclass(frozen=True)
class Theirs:
    """A solver of diffusers.

    Attributes:
        flow: its scheduler for flows, None where there is none.
        other: that for a model that preserves variance.
        own: it knows only the levels that diffusers gives it.
    """

    flow: Any
    other: Any
    options: dict[str, Any] = field(default_factory=dict)
    own: bool = False


def _both(kind: Any, **options: Any) -> Theirs:
    return Theirs(kind, kind, options)


def _still(t: Any) -> float:
    """The amount of noise of SA-Solver: none."""
    return 0.0


def _sa(order: int, **options: Any) -> Theirs:
    options |= {"predictor_order": order, "corrector_order": order}
    return _both(SASolverScheduler, **options)


THEIRS: dict[str, Theirs] = {
    "Euler": Theirs(FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler),
    "Heun": Theirs(FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler),
    "DDIM": Theirs(None, DDIMScheduler, own=True),
    "PNDM": Theirs(None, PNDMScheduler, {"skip_prk_steps": True}, own=True),
    "LMS": Theirs(None, LMSDiscreteScheduler),
    "KDPM2": Theirs(None, KDPM2DiscreteScheduler, own=True),
    "DPM++ 2M": _both(DPMSolverMultistepScheduler, solver_order=2),
    "DPM++ 3M": _both(DPMSolverMultistepScheduler, solver_order=3),
    "DPM++ 2S": _both(DPMSolverSinglestepScheduler, solver_order=2, lower_order_final=True),
    "DPM++ 3S": _both(DPMSolverSinglestepScheduler, solver_order=3, lower_order_final=True),
    "UniPC 2 (diffusers)": _both(UniPCMultistepScheduler, solver_order=2),
    "UniPC 3 (diffusers)": _both(UniPCMultistepScheduler, solver_order=3),
    "DEIS 2": _both(DEISMultistepScheduler, solver_order=2),
    "DEIS 3": _both(DEISMultistepScheduler, solver_order=3),
    "SA-Solver 1": _sa(1, tau_func=_still),
    "SA-Solver 2": _sa(2, tau_func=_still),
    "SA-Solver 3": _sa(3, tau_func=_still),
    "SA-Solver 2, noise": _sa(2),
    "DPM++ 2M SDE": _both(
        DPMSolverMultistepScheduler, solver_order=2, algorithm_type="sde-dpmsolver++"
    ),
}


@dataclass(frozen=True)
class Solver:
    """One row: `make(config, grid)` gives its scheduler for the config of a model's own."""

    name: str
    by: str
    make: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    own: bool = False

    @property
    def random(self) -> bool:
        return self.name in RANDOM

    def steps(self, evaluations: int) -> int | None:
        """Steps that take so many evaluations; None where none do."""
        if self.name in DOUBLED:
            return (evaluations + 1) // 2 if evaluations % 2 else None
        left = evaluations - ADDED.get(self.name, 0)
        return left if left >= 2 or self.name not in ADDED else None


def solvers(flow: bool = True) -> list[Solver]:
    """All rows for a flow, or for a model that preserves variance; ours first."""
    theirs = [_theirs(n) for n, t in THEIRS.items() if (t.flow if flow else t.other) is not None]
    return [_ours(n) for n in OURS] + theirs


def _ours(name: str) -> Solver:
    kind, options = OURS[name]
    return Solver(
        name, "ours", lambda config, grid: SOLVERS[kind].from_config(config, **options, **grid)
    )


def _theirs(name: str) -> Solver:
    theirs = THEIRS[name]

    def make(config: Mapping[str, Any], grid: Mapping[str, Any]) -> Any:
        provider = AdamsBashforth.from_config(config, **grid)
        if not provider.flow:
            scheduler = theirs.other.from_config(provider.config, **theirs.options)
        elif theirs.flow is theirs.other:
            flags = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
            scheduler = theirs.flow(**flags, **theirs.options)
        else:
            scheduler = theirs.flow()
        return scheduler if theirs.own else moved(scheduler, provider)

    return Solver(name, "diffusers", make, theirs.own)


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
