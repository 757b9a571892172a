"""Lumina 2: calls for cond, then uncond; text and image in one stream; T5 stands in for Gemma."""

from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

from . import text
from .flux import vae
from .schedulers import SCHEDULERS

CALL = {"height": 64, "width": 64, "max_sequence_length": 24, "system_prompt": "a"}
SCHEDULER = "flow_euler"


def transformer() -> Lumina2Transformer2DModel:
    return Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 16, 16),
        cap_feat_dim=text.WIDTH,
    )


def build(scheduler: str = SCHEDULER) -> Lumina2Pipeline:
    return Lumina2Pipeline(
        transformer=transformer(),
        scheduler=SCHEDULERS[scheduler](),
        vae=vae(),
        text_encoder=text.t5(),
        tokenizer=text.tokenizer(24),
    )
