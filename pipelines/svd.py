"""Stable Video Diffusion (image to video). Sample and output are (batch, frames, channels, …)."""

from accel.family import Family

from .published import unet_balanced, unet_fast

FAMILY = Family(
    name="svd",
    classes=("UNetSpatioTemporalConditionModel",),
    attributes=("unet",),
    kind="unet",
    stream="sample",
    axes={"sample": 0, "timestep": 0, "encoder_hidden_states": 0, "added_time_ids": 0},
    fused=("uncond", "cond"),
    recipes={"balanced": unet_balanced, "fast": unet_fast},
)
