"""Wan 2.1 and 2.2: separate guidance, `cond` then `uncond`; 2.2 has a second transformer."""

from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16}
SCHEDULER = "flow_unipc"


def transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=text.WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=4,
        rope_max_seq_len=32,
    )


def vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
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
