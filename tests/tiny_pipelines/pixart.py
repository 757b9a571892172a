"""PixArt-Alpha: fused guidance [uncond, cond], cross attention to text, learned variance."""

from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel

from . import text
from .schedulers import SCHEDULERS
from .sd import vae

CALL = {
    "height": 32,
    "width": 32,
    "max_sequence_length": 16,
    "use_resolution_binning": False,
    "clean_caption": False,
}
SCHEDULER = "dpm++"


def transformer() -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        cross_attention_dim=24,
        sample_size=16,
        patch_size=2,
        norm_num_groups=4,
        caption_channels=text.WIDTH,
    )


def build(scheduler: str = SCHEDULER) -> PixArtAlphaPipeline:
    return PixArtAlphaPipeline(
        tokenizer=text.tokenizer(16),
        text_encoder=text.t5(),
        vae=vae(),
        transformer=transformer(),
        scheduler=SCHEDULERS[scheduler](),
    )
