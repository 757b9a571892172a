"""Sana and SanaSprint (text to image; linear self-attention)."""

from accel.family import Blocks, Family

from .published import image_balanced, image_fast

FAMILY = Family(
    name="sana",
    classes=("SanaTransformer2DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=("hidden_states",),
            returns=("hidden_states",),
            modules=("attn1", "attn2", "ff"),
            batched=(
                "attention_mask",
                "encoder_hidden_states",
                "encoder_attention_mask",
                "timestep",
            ),
            modulation=("table", "norm1", "timestep"),
            attention={"attn1": "self", "attn2": "cross"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "timestep": 0,
        "guidance": 0,
        "encoder_attention_mask": 0,
        "attention_mask": 0,
        "attention_kwargs": None,
        "controlnet_block_samples": 0,
    },
    fused=("uncond", "cond"),
    recipes={"balanced": image_balanced, "fast": image_fast},
)
