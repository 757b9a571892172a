"""HunyuanVideo (text to video, and the image-to-video models that replace first-frame tokens)."""

from dataclasses import replace

from accel.family import Blocks, Family

from .published import balanced, fast

STREAMS = ("hidden_states", "encoder_hidden_states")
BATCHED = ("temb", "attention_mask")

DOUBLE = Blocks(
    "transformer_blocks",
    streams=STREAMS,
    returns=STREAMS,
    modules=("attn", "ff", "ff_context"),
    batched=BATCHED,
    modulation=("norm", "norm1", "temb"),
    attention={"attn": "self"},
)
SINGLE = Blocks(
    "single_transformer_blocks",
    streams=STREAMS,
    returns=STREAMS,
    modules=("proj_out",),
    idle=("attn", "proj_mlp", "act_mlp"),
    batched=BATCHED,
    attention={"attn": "self"},
)

FAMILY = Family(
    name="hunyuan_video",
    classes=("HunyuanVideoTransformer3DModel",),
    blocks=(DOUBLE, SINGLE),
    text="last",
    axes={
        "hidden_states": 0,
        "timestep": 0,
        "encoder_hidden_states": 0,
        "encoder_attention_mask": 0,
        "pooled_projections": 0,
        "guidance": 0,
        "attention_kwargs": None,
    },
    recipes={"balanced": balanced, "fast": fast},
)

# the first frame's tokens are modulated by an embedding of their own
TOKEN_REPLACE = replace(
    FAMILY,
    name="hunyuan_video_i2v",
    config={"image_condition_type": "token_replace"},
    blocks=(
        replace(DOUBLE, batched=(*BATCHED, "token_replace_emb"), modulation=None),
        replace(SINGLE, batched=(*BATCHED, "token_replace_emb")),
    ),
)
