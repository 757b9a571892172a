"""Stable Diffusion 1.x and 2.x, and SDXL (U-Nets; text, image and ControlNet pipelines)."""

from accel.family import Family
from accel.plan import Plan, as_method

from .published import unet_balanced, unet_fast

MEASURED = "chosen on the shipped shapes-t2i, 50 steps (benchmarks/results/fidelity.md)"
AXES = {
    "sample": 0,
    "timestep": 0,
    "encoder_hidden_states": 0,
    "class_labels": 0,
    "timestep_cond": 0,
    "attention_mask": 0,
    "cross_attention_kwargs": None,
    "added_cond_kwargs": 0,
    "down_block_additional_residuals": 0,
    "mid_block_additional_residual": 0,
    "down_intrablock_additional_residuals": 0,
    "encoder_attention_mask": 0,
}


def balanced() -> Plan:
    """20 of 50 steps."""
    method = as_method("TaylorSeer", interval=3, warmup=5, last=True, settle=True)
    return Plan((method,), "balanced", MEASURED)


def fast() -> Plan:
    """14 of 50 steps."""
    method = as_method("TaylorSeer", interval=5, warmup=5, last=True, settle=True)
    return Plan((method,), "fast", MEASURED)


SDXL = Family(
    name="sdxl",
    classes=("UNet2DConditionModel",),
    attributes=("unet",),
    kind="unet",
    config={"addition_embed_type": "text_time"},
    stream="sample",
    axes=AXES,
    fused=("uncond", "cond"),
    recipes={"balanced": unet_balanced, "fast": unet_fast},
)

SD = Family(
    name="sd",
    classes=("UNet2DConditionModel",),
    attributes=("unet",),
    kind="unet",
    stream="sample",
    axes=AXES,
    fused=("uncond", "cond"),
    recipes={"balanced": balanced, "fast": fast},
)
