"""Stable Video Diffusion's shape, tiny: temporal layers beside spatial ones, fused guidance.

The pipeline takes a picture instead of a prompt, and its guidance grows over the frames.
"""

import zlib
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32, "num_frames": 3, "decode_chunk_size": 3}
SCHEDULER = "euler"
WIDTH = 16  # of picture embeddings


def picture(
    pipe: StableVideoDiffusionPipeline, prompts: list[str], negative: list[str] | None
) -> dict[str, Any]:
    """A picture for every prompt; and an output object, since the tuple is no tuple here."""
    seeds = [zlib.crc32(prompt.encode()) for prompt in prompts]
    noise = [torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return {
        "image": torch.nn.functional.interpolate(torch.stack(noise), 32, mode="bilinear"),
        "return_dict": True,
    }


def unet() -> UNetSpatioTemporalConditionModel:
    """Norms of 32 groups, which this model fixes, make 32 the smallest width."""
    return UNetSpatioTemporalConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=4,
        down_block_types=(
            "CrossAttnDownBlockSpatioTemporal",
            "CrossAttnDownBlockSpatioTemporal",
            "DownBlockSpatioTemporal",
        ),
        up_block_types=(
            "UpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
            "CrossAttnUpBlockSpatioTemporal",
        ),
        block_out_channels=(32, 32, 32),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        num_frames=3,
    )


def vae() -> AutoencoderKLTemporalDecoder:
    """Halves each side: 32×32 pixels are 4×16×16 latents."""
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        layers_per_block=1,
        latent_channels=4,
        force_upcast=False,
    )


def image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            projection_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
    )


def build(scheduler: str = SCHEDULER) -> StableVideoDiffusionPipeline:
    return StableVideoDiffusionPipeline(
        vae=vae(),
        image_encoder=image_encoder(),
        unet=unet(),
        scheduler=SCHEDULERS[scheduler](),
        feature_extractor=CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
    )
