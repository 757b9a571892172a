"""HunyuanVideo 1.5: text, glyphs and picture in one padded sequence; guidance in two calls.

A Llama model stands in for Qwen 2.5-VL; a guider holds the scale of guidance.
"""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from diffusers.models.transformers import transformer_hunyuan_video15

from . import text
from .schedulers import SCHEDULERS

CALL = {"height": 32, "width": 32, "num_frames": 5}
SCHEDULER = "flow_euler"
PICTURE = 3  # tokens of a picture, masked in text to video


class Glyphs(transformer_hunyuan_video15.HunyuanVideo15ByT5TextProjection):
    """Diffusers' own with 32 hidden values: its 2,048 are no setting, and nearly all the work."""

    def __init__(self, in_features: int, hidden_size: int, out_features: int) -> None:
        super().__init__(in_features, 32, out_features)


transformer_hunyuan_video15.HunyuanVideo15ByT5TextProjection = Glyphs


def transformer() -> HunyuanVideo15Transformer3DModel:
    return HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=text.WIDTH,
        text_embed_2_dim=text.WIDTH,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
    )


def vae() -> AutoencoderKLHunyuanVideo15:
    """Divides each side by 8 and frames by 4: 5×32×32 pixels are 4×2×4×4 latents."""
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )


def build(scheduler: str = SCHEDULER) -> HunyuanVideo15Pipeline:
    pipe = HunyuanVideo15Pipeline(
        text_encoder=text.llama(),
        tokenizer=text.tokenizer(16),
        transformer=transformer(),
        vae=vae(),
        scheduler=SCHEDULERS[scheduler](),
        text_encoder_2=text.t5(),
        tokenizer_2=text.tokenizer(8),
        guider=ClassifierFreeGuidance(),
    )
    pipe.vision_num_semantic_tokens = PICTURE
    return pipe


def embeddings(
    pipe: DiffusionPipeline, prompts: list[str], negative: list[str] | None
) -> dict[str, Any]:
    """Of the prompts, and of their first words as glyphs; negative prompts have no glyphs."""
    arguments = text.embeddings(pipe, prompts, negative, mask=True)
    tokens = pipe.tokenizer_2(
        prompts, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = pipe.text_encoder_2(tokens.input_ids, tokens.attention_mask)[0]
    return arguments | {
        "prompt_embeds_2": hidden,
        "prompt_embeds_mask_2": tokens.attention_mask,
        "negative_prompt_embeds_2": torch.zeros_like(hidden),
        "negative_prompt_embeds_mask_2": torch.zeros_like(tokens.attention_mask),
    }
