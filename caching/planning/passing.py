"""A scheduler taken past a step whose result is known, without its arithmetic."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddim_cogvideox import DDIMSchedulerOutput as CogVideoXOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

RETURNS: dict[type, Any] = {
    CogVideoXDDIMScheduler: CogVideoXOutput,
    DDIMScheduler: DDIMSchedulerOutput,
    DPMSolverMultistepScheduler: SchedulerOutput,
    EulerDiscreteScheduler: EulerDiscreteSchedulerOutput,
    FlowMatchEulerDiscreteScheduler: FlowMatchEulerDiscreteSchedulerOutput,
    UniPCMultistepScheduler: SchedulerOutput,
}
"""What the step of a scheduler returns, for those of which is known what a step changes in them."""


def passed(scheduler: Any, timestep: Any, state: Tensor, return_dict: bool = True) -> Any:
    """What the step of one of `RETURNS` returns when it ends in `state`; nothing is computed.

    Its place in the run moves on. Its memory of outputs stays empty: a step that it takes by
    itself later begins there as at the start of a run, with a multistep solver at first order.
    What it would have told beside the state (the final sample as foreseen) is None.
    """
    if hasattr(scheduler, "step_index"):
        if scheduler.step_index is None:
            scheduler._init_step_index(timestep)
        scheduler._step_index += 1
    if type(scheduler) is UniPCMultistepScheduler:
        scheduler.this_order = 1  # which it has from its first step on
    kind = RETURNS[type(scheduler)]
    return kind(prev_sample=state) if return_dict else (state, *[None] * (len(fields(kind)) - 1))
