"""Schedulers to swap into the tiny pipelines, by short name."""

import diffusers

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SKIPPING = VP | {"steps_offset": 1, "set_alpha_to_one": False}

SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(**SKIPPING, clip_sample=False),
    "pndm": lambda: diffusers.PNDMScheduler(**SKIPPING, skip_prk_steps=True),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**VP),
    "euler_ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**VP),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**VP),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**VP),
    "dpm++": lambda: diffusers.DPMSolverMultistepScheduler(**VP),
    "lcm": lambda: diffusers.LCMScheduler(**SKIPPING),
    "flow_euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow_heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    "flow_unipc": lambda: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "flow_dpm++": lambda: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ),
    "flow_euler_dynamic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True
    ),
    "cogvideox_ddim": lambda: diffusers.CogVideoXDDIMScheduler(),
    "cogvideox_dpm": lambda: diffusers.CogVideoXDPMScheduler(),
}
