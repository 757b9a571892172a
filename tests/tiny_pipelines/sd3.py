"""Stable Diffusion 3.5's shape, tiny: a second attention in the first block, fused guidance."""

import torch
from diffusers import (
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Pipeline,
)

from . import text
from .flux import vae
from .schedulers import SCHEDULERS
from .sd import IMAGE

CALL = {"height": 32, "width": 32, "max_sequence_length": 16}
CONTROLNET = CALL | {"control_image": IMAGE}
SCHEDULER = "flow_euler"
SIZES = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 2 * text.WIDTH,
    "caption_projection_dim": 24,
    "pooled_projection_dim": 2 * text.WIDTH,
    "out_channels": 4,
    "pos_embed_max_size": 16,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}


def controlnet() -> SD3ControlNetModel:
    """Its last layers, zero as published before training, are drawn at random to have an effect."""
    model = SD3ControlNetModel(num_layers=2, extra_conditioning_channels=0, **SIZES)
    for layer in [*model.controlnet_blocks, model.pos_embed_input.proj]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def build(scheduler: str = SCHEDULER, control: bool = False) -> StableDiffusion3Pipeline:
    kind = StableDiffusion3ControlNetPipeline if control else StableDiffusion3Pipeline
    coder = vae()
    with torch.no_grad():  # this pipeline draws the control latents from no generator of ours
        coder.encoder.conv_out.weight[4:] = 0
        coder.encoder.conv_out.bias[4:] = -30
    return kind(
        transformer=SD3Transformer2DModel(num_layers=3, **SIZES),
        scheduler=SCHEDULERS[scheduler](),
        vae=coder,
        text_encoder=text.clip(projection=True),
        tokenizer=text.tokenizer(77, clip=True),
        text_encoder_2=text.clip(projection=True),
        tokenizer_2=text.tokenizer(77, clip=True),
        text_encoder_3=text.t5(2 * text.WIDTH),
        tokenizer_3=text.tokenizer(16),
        **({"controlnet": controlnet()} if control else {}),
    )
