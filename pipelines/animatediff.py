"""AnimateDiff on Stable Diffusion and SDXL (text, video and ControlNet pipelines).

The text has one entry per frame of each sample; so have the residuals of a ControlNet.
"""

from accel.family import Family

from .published import unet_balanced, unet_fast

FAMILY = Family(
    name="animatediff",
    classes=("UNetMotionModel",),
    attributes=("unet",),
    kind="unet",
    stream="sample",
    axes={
        "sample": 0,
        "timestep": 0,
        "encoder_hidden_states": 0,
        "timestep_cond": 0,
        "attention_mask": 0,
        "cross_attention_kwargs": None,
        "added_cond_kwargs": 0,
        "down_block_additional_residuals": 0,
        "mid_block_additional_residual": 0,
    },
    fused=("uncond", "cond"),
    recipes={"balanced": unet_balanced, "fast": unet_fast},
)
