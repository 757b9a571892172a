"""PixArt-Alpha and PixArt-Sigma (text to image)."""

from accel.family import Blocks, Family

from .published import image_balanced, image_fast

FAMILY = Family(
    name="pixart",
    classes=("PixArtTransformer2DModel",),
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
        "added_cond_kwargs": 0,
        "cross_attention_kwargs": None,
        "attention_mask": 0,
        "encoder_attention_mask": 0,
    },
    fused=("uncond", "cond"),
    recipes={"balanced": image_balanced, "fast": image_fast},
)
