"""AnimateDiff: Stable Diffusion's U-Net with motion modules, fused guidance [uncond, cond]."""

import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, UNetMotionModel

from . import text
from .schedulers import SCHEDULERS
from .sd import vae

CALL = {"height": 32, "width": 32, "num_frames": 3}
SCHEDULER = "ddim"
SIZES = {"block_out_channels": (8, 16, 16), "motion_num_attention_heads": 2}


def unet() -> UNetMotionModel:
    """The last layers of motion modules, zero before training, are drawn at random."""
    model = UNetMotionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlockMotion",) * 2 + ("DownBlockMotion",),
        up_block_types=("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=text.WIDTH,
        num_attention_heads=2,
        motion_max_seq_length=8,
        **SIZES,
    )
    for name, module in model.named_modules():
        if name.endswith("proj_out"):
            torch.nn.init.normal_(module.weight, std=0.2)
    return model


def adapter() -> MotionAdapter:
    return MotionAdapter(
        motion_layers_per_block=1, motion_norm_num_groups=4, motion_max_seq_length=8, **SIZES
    )


def build(scheduler: str = SCHEDULER) -> AnimateDiffPipeline:
    return AnimateDiffPipeline(
        vae=vae(),
        text_encoder=text.clip(),
        tokenizer=text.tokenizer(77, clip=True),
        unet=unet(),
        motion_adapter=adapter(),
        scheduler=SCHEDULERS[scheduler](),
    )
