"""Mochi 1 (text to video). Its last block has no text feed-forward."""

from accel.family import Blocks, Family

from .published import balanced, fast

STREAMS = ("hidden_states", "encoder_hidden_states")

FAMILY = Family(
    name="mochi",
    classes=("MochiTransformer3DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=STREAMS,
            returns=STREAMS,
            modules=("attn1", "ff", "ff_context"),
            batched=("temb", "encoder_attention_mask"),
            modulation=("norm", "norm1", "temb"),
            attention={"attn1": "self"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "timestep": 0,
        "encoder_attention_mask": 0,
        "attention_kwargs": None,
    },
    text="last",
    fused=("uncond", "cond"),
    branches={"cond_uncond": "both"},
    recipes={"balanced": balanced, "fast": fast},
)
