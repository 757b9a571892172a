"""LTX-Video: packed tokens, cross attention to text, fused guidance [uncond, cond]."""

from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}
SCHEDULER = "flow_euler_dynamic"


def transformer() -> LTXVideoTransformer3DModel:
    return LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=4,
        caption_channels=text.WIDTH,
    )


def vae() -> AutoencoderKLLTXVideo:
    """Divides each side by 4 and frames by 4: 9×32×32 pixels are 8×3×8×8 latents."""
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
        patch_size_t=1,
    )


def build(scheduler: str = SCHEDULER) -> LTXPipeline:
    return LTXPipeline(
        scheduler=SCHEDULERS[scheduler](),
        vae=vae(),
        text_encoder=text.t5(),
        tokenizer=text.tokenizer(16),
        transformer=transformer(),
    )
