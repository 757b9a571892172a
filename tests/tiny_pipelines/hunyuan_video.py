"""HunyuanVideo: joint tokens with a text mask, embedded guidance, true guidance in two calls.

`replace` gives the first frame's tokens a modulation of their own, as image-to-video models have.
"""

from diffusers import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)

from . import text
from .schedulers import SCHEDULERS

CALL = {
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "max_sequence_length": 16,
    "prompt_template": {"template": "{}", "crop_start": 0},
}
SCHEDULER = "flow_euler"


def transformer(replace: bool = False) -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=2,
        guidance_embeds=True,
        text_embed_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        rope_axes_dim=(4, 4, 4),
        image_condition_type="token_replace" if replace else None,
    )


def vae() -> AutoencoderKLHunyuanVideo:
    """Divides each side and frames by 4: 5×32×32 pixels are 4×2×8×8 latents."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
        mid_block_add_attention=False,
    )


def build(scheduler: str = SCHEDULER, replace: bool = False) -> HunyuanVideoPipeline:
    return HunyuanVideoPipeline(
        text_encoder=text.llama(),
        tokenizer=text.tokenizer(16),
        transformer=transformer(replace),
        vae=vae(),
        scheduler=SCHEDULERS[scheduler](),
        text_encoder_2=text.clip(),
        tokenizer_2=text.tokenizer(77, clip=True),
    )
