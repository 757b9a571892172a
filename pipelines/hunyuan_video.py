"""HunyuanVideo 1.0 (also the image-to-video models that replace first-frame tokens) and 1.5."""

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

# two streams throughout; text, glyphs and the picture to animate in one sequence after the video
VERSION_1_5 = replace(
    FAMILY,
    name="hunyuan_video15",
    classes=("HunyuanVideo15Transformer3DModel",),
    blocks=(DOUBLE,),
    padding="square",
    axes={
        "hidden_states": 0,
        "timestep": 0,
        "encoder_hidden_states": 0,
        "encoder_attention_mask": 0,
        "timestep_r": 0,
        "encoder_hidden_states_2": 0,
        "encoder_attention_mask_2": 0,
        "image_embeds": 0,
        "attention_kwargs": None,
    },
    branches={"pred_cond": "cond", "pred_uncond": "uncond"},
)
