"""Wan 2.1 and 2.2: separate guidance, `cond` then `uncond`; 2.2 has a second transformer.

Image to video as in 2.2: mask and encoded image are concatenated to the latents as channels.
"""

import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16}
IMAGE = torch.linspace(0, 20, 3 * 64 * 64).reshape(1, 3, 64, 64).sin().abs()  # RGB in [0, 1]
I2V = CALL | {"image": IMAGE}
SCHEDULER = "flow_unipc"
LATENT_CHANNELS = 4
MASK_CHANNELS = 4


def transformer(in_channels: int = LATENT_CHANNELS) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        text_dim=text.WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=4,
        rope_max_seq_len=32,
    )


def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def build(scheduler: str = SCHEDULER, second: bool = False) -> WanPipeline:
    """`second` adds the low-noise transformer of Wan 2.2, used below 0.6 of the timesteps."""
    return WanPipeline(
        tokenizer=text.tokenizer(16),
        text_encoder=text.umt5(),
        vae=vae(),
        scheduler=SCHEDULERS[scheduler](),
        transformer=transformer(),
        transformer_2=transformer() if second else None,
        boundary_ratio=0.6 if second else None,
    )


def build_i2v(scheduler: str = SCHEDULER) -> WanImageToVideoPipeline:
    return WanImageToVideoPipeline(
        tokenizer=text.tokenizer(16),
        text_encoder=text.umt5(),
        vae=vae(),
        scheduler=SCHEDULERS[scheduler](),
        transformer=transformer(2 * LATENT_CHANNELS + MASK_CHANNELS),
    )
