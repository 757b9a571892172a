"""LTX-2: video and audio streams; the audio steps on a deep copy of the scheduler.

A T5 encoder stands in for Gemma: the pipeline reads only the hidden states of its layers.
"""

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from . import text
from .schedulers import SCHEDULERS

CALL = {
    "height": 32,
    "width": 32,
    "num_frames": 9,
    "max_sequence_length": 16,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
    "audio_guidance_scale": None,
}
SCHEDULER = "flow_euler_dynamic"


def transformer() -> LTX2VideoTransformer3DModel:
    return LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        vae_scale_factors=(4, 4, 4),
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=3,
        caption_channels=text.WIDTH,
    )


def connectors() -> LTX2TextConnectors:
    return LTX2TextConnectors(
        caption_channels=text.WIDTH,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=text.WIDTH // 2,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=text.WIDTH // 2,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
    )


def video_vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
        patch_size_t=1,
    )


def audio_vae() -> AutoencoderKLLTX2Audio:
    """16 mel bins are 4 latent bins of 2 channels: audio tokens of 8."""
    return AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=16
    )


def build(scheduler: str = SCHEDULER) -> LTX2Pipeline:
    return LTX2Pipeline(
        scheduler=SCHEDULERS[scheduler](),
        vae=video_vae(),
        audio_vae=audio_vae(),
        text_encoder=text.t5(),
        tokenizer=text.tokenizer(16),
        connectors=connectors(),
        transformer=transformer(),
        vocoder=LTX2Vocoder(
            in_channels=32,
            hidden_channels=8,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
        ),
    )
