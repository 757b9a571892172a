"""DiT: classes instead of text, fused guidance [cond, uncond]; the pipeline returns pixels."""

import zlib
from typing import Any

from diffusers import DiTPipeline, DiTTransformer2DModel

from .schedulers import SCHEDULERS
from .sd import vae

CALL: dict[str, Any] = {}
SCHEDULER = "dpm++"


def labels(pipe: DiTPipeline, prompts: list[str], negative: list[str] | None) -> dict[str, Any]:
    """A class for every prompt."""
    return {"class_labels": [zlib.crc32(prompt.encode()) % 1000 for prompt in prompts]}


def transformer() -> DiTTransformer2DModel:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=8,
        patch_size=2,
        norm_num_groups=4,
    )


def build(scheduler: str = SCHEDULER) -> DiTPipeline:
    return DiTPipeline(transformer=transformer(), vae=vae(), scheduler=SCHEDULERS[scheduler]())
