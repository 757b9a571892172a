"""A scheduler's response to impulses is the scheduler, or it is refused."""

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from accel.caching.planning.response import response

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "ddim epsilon": lambda: DDIMScheduler(clip_sample=False),
    "flow euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "unipc": UniPCMultistepScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "pndm": lambda: PNDMScheduler(skip_prk_steps=True),
    "heun": HeunDiscreteScheduler,
    "euler": EulerDiscreteScheduler,
    "euler v": lambda: EulerDiscreteScheduler(prediction_type="v_prediction"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_states_follow_from_the_first_and_the_outputs(name):
    scheduler = SCHEDULERS[name]()
    scheduler.set_timesteps(12)
    total = len(scheduler.timesteps)
    found = response(scheduler, total)
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    states, outputs = [sample], []
    for t in scheduler.timesteps:
        outputs.append(torch.randn(sample.shape, generator=generator, dtype=torch.float64))
        sample = scheduler.step(outputs[-1], t, sample, return_dict=False)[0].double()
        states.append(sample)
    for i in range(total + 1):
        expected = found.start[i] * states[0]
        for j, output in enumerate(outputs):
            expected = expected + found.outputs[i, j] * output
        assert (expected - states[i]).abs().max() < 1e-5 * states[i].abs().max()
    assert (found.outputs[0] == 0).all() and found.start[0] == 1


def test_a_scheduler_is_asked_without_a_warning(caplog):
    """Euler would say once a step that the model's input has to be scaled; here there is none."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    diffusers.utils.logging.enable_propagation()
    try:
        response(scheduler, 5)
        assert caplog.records == [] and not scheduler.is_scale_input_called
        scheduler.step(torch.zeros(1), scheduler.timesteps[0], torch.zeros(1))
    finally:
        diffusers.utils.logging.disable_propagation()
    assert "scale_model_input" in caplog.text


def test_a_copy_is_asked():
    scheduler = UniPCMultistepScheduler(**FLOW)
    scheduler.set_timesteps(5)
    before = {k: str(v) for k, v in vars(scheduler).items()}
    response(scheduler, 5)
    assert {k: str(v) for k, v in vars(scheduler).items()} == before


@pytest.mark.parametrize(
    "scheduler",
    [DDPMScheduler(), EulerAncestralDiscreteScheduler(), DDIMScheduler(clip_sample=True)],
    ids=lambda s: type(s).__name__,
)
def test_what_is_random_or_clips_is_refused(scheduler):
    scheduler.set_timesteps(8)
    with pytest.raises(ValueError, match="no linear map and cannot be planned"):
        response(scheduler, 8)


def test_a_scheduler_that_wants_more_is_refused():
    scheduler = CogVideoXDPMScheduler()
    scheduler.set_timesteps(8)
    with pytest.raises(ValueError, match=r"CogVideoXDPMScheduler\.step wants more than an output"):
        response(scheduler, 8)
