"""Mochi: fused guidance [uncond, cond], joint tokens with a text mask; the last block ends text."""

from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 64, "width": 64, "num_frames": 7, "max_sequence_length": 16}
SCHEDULER = "flow_euler"


def transformer() -> MochiTransformer3DModel:
    return MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=text.WIDTH,
        time_embed_dim=8,
        max_sequence_length=16,
    )


def vae() -> AutoencoderKLMochi:
    """Divides each side by 8 and frames by 6: 7×64×64 pixels are 12×2×8×8 latents."""
    return AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        add_attention_block=(False,) * 5,
    )


def build(scheduler: str = SCHEDULER) -> MochiPipeline:
    return MochiPipeline(
        scheduler=SCHEDULERS[scheduler](),
        vae=vae(),
        text_encoder=text.t5(),
        tokenizer=text.tokenizer(16),
        transformer=transformer(),
    )
