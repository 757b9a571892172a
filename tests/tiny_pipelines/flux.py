"""Flux: guidance embedded, and separate `cond` then `uncond` calls when true guidance is asked."""

import torch
from diffusers import (
    AutoencoderKL,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from . import text
from .schedulers import SCHEDULERS
from .sd import IMAGE

CALL = {"height": 32, "width": 32, "max_sequence_length": 16}
CONTROLNET = CALL | {"control_image": IMAGE}
SCHEDULER = "flow_euler_dynamic"


SIZES = {
    "in_channels": 16,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": text.WIDTH,
    "pooled_projection_dim": text.WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 4, 4),
}


def transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(num_layers=3, num_single_layers=3, **SIZES)


def controlnet() -> FluxControlNetModel:
    """Its last layers, zero as published before training, are drawn at random to have an effect."""
    model = FluxControlNetModel(num_layers=2, num_single_layers=1, **SIZES)
    for layer in [
        *model.controlnet_blocks,
        *model.controlnet_single_blocks,
        model.controlnet_x_embedder,
    ]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    return model


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1,
        scaling_factor=0.4,
    )


def build(scheduler: str = SCHEDULER, control: bool = False) -> FluxPipeline:
    return (FluxControlNetPipeline if control else FluxPipeline)(
        scheduler=SCHEDULERS[scheduler](),
        vae=vae(),
        text_encoder=text.clip(),
        tokenizer=text.tokenizer(77, clip=True),
        text_encoder_2=text.t5(),
        tokenizer_2=text.tokenizer(16),
        transformer=transformer(),
        **({"controlnet": controlnet()} if control else {}),
    )
