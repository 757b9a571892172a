"""Lumina-Image 2.0 (text to image).

Guidance is two calls, cond then uncond, the second left out on truncated steps. Text and image
are one stream, padded to the longest caption of the batch.
"""

from accel.family import Blocks, Family

from .published import image_balanced, image_fast

FAMILY = Family(
    name="lumina2",
    classes=("Lumina2Transformer2DModel",),
    blocks=(
        Blocks(
            "layers",
            streams=("hidden_states",),
            returns=("hidden_states",),
            modules=("attn", "feed_forward"),
            batched=("attention_mask", "image_rotary_emb", "temb"),
            modulation=("norm", "norm1", "temb"),
            attention={"attn": "self"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "timestep": 0,
        "encoder_hidden_states": 0,
        "encoder_attention_mask": 0,
        "attention_kwargs": None,
    },
    branches={"0": "cond", "1": "uncond"},
    recipes={"balanced": image_balanced, "fast": image_fast},
)
