"""Qwen-Image: two streams, calls for cond, then uncond; T5 stands in for Qwen 2.5-VL.

`zero_time` embeds time 0 beside the time, as the editing model of 2511 does.
"""

import functools

from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32}
SCHEDULER = "flow_euler_dynamic"
embeddings = functools.partial(text.embeddings, mask=True)


def transformer(zero_time: bool = False) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=(4, 4, 4),
        zero_cond_t=zero_time,
    )


def vae() -> AutoencoderKLQwenImage:
    """Divides each side by 4: 32×32 pixels are 4×8×8 latents, packed into 16 tokens."""
    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def build(scheduler: str = SCHEDULER, zero_time: bool = False) -> QwenImagePipeline:
    return QwenImagePipeline(
        scheduler=SCHEDULERS[scheduler](),
        vae=vae(),
        text_encoder=text.t5(),
        tokenizer=text.tokenizer(16),
        transformer=transformer(zero_time),
    )
