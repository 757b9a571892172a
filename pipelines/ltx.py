"""LTX-Video (text and image to video)."""

from accel.family import Blocks, Family

from .published import balanced, fast

FAMILY = Family(
    name="ltx",
    classes=("LTXVideoTransformer3DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=("hidden_states",),
            returns=("hidden_states",),
            modules=("attn1", "attn2", "ff"),
            batched=("encoder_hidden_states", "temb", "image_rotary_emb", "encoder_attention_mask"),
            modulation=("table", "norm1", "temb"),
            attention={"attn1": "self", "attn2": "cross"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "timestep": 0,
        "encoder_attention_mask": 0,
        "num_frames": None,
        "height": None,
        "width": None,
        "rope_interpolation_scale": None,
        "video_coords": 0,
        "attention_kwargs": None,
    },
    fused=("uncond", "cond"),
    branches={"cond_uncond": "both"},
    recipes={"balanced": balanced, "fast": fast},
)
