"""Sana: linear self-attention, fused guidance [uncond, cond]; T5 stands in for Gemma."""

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {
    "height": 32,
    "width": 32,
    "max_sequence_length": 16,
    "use_resolution_binning": False,
    "complex_human_instruction": None,
}
SCHEDULER = "flow_dpm++"


def transformer() -> SanaTransformer2DModel:
    return SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=text.WIDTH,
        sample_size=8,
    )


def vae() -> AutoencoderDC:
    """Divides each side by 4: 32×32 pixels are 4×8×8 latents."""
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    )


def build(scheduler: str = SCHEDULER) -> SanaPipeline:
    return SanaPipeline(
        tokenizer=text.tokenizer(16),
        text_encoder=text.t5(),
        vae=vae(),
        transformer=transformer(),
        scheduler=SCHEDULERS[scheduler](),
    )
