"""Flux: guidance embedded, and separate `cond` then `uncond` calls when true guidance is asked."""

from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32, "max_sequence_length": 16}
SCHEDULER = "flow_euler_dynamic"


def transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=3,
        num_single_layers=3,
        attention_head_dim=12,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 4),
    )


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


def build(scheduler: str = SCHEDULER) -> FluxPipeline:
    return FluxPipeline(
        scheduler=SCHEDULERS[scheduler](),
        vae=vae(),
        text_encoder=text.clip(),
        tokenizer=text.tokenizer(77, clip=True),
        text_encoder_2=text.t5(),
        tokenizer_2=text.tokenizer(16),
        transformer=transformer(),
    )
