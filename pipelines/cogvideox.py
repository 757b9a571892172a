"""CogVideoX (text and image to video)."""

from accel.family import Blocks, Family

from .published import balanced, fast

FAMILY = Family(
    name="cogvideox",
    classes=("CogVideoXTransformer3DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            modules=("attn1", "ff"),
            batched=("temb",),
            attention={"attn1": "self"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "timestep": 0,
        "timestep_cond": 0,
        "ofs": 0,
        "image_rotary_emb": None,
        "attention_kwargs": None,
    },
    channels=2,
    fused=("uncond", "cond"),
    branches={"cond_uncond": "both"},
    recipes={"balanced": balanced, "fast": fast},
)
