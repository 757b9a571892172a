"""Flux.1 (text to image, and the pipelines that share its transformer)."""

from accel.family import Blocks, Family

from .published import image_balanced, image_fast

STREAMS = ("hidden_states", "encoder_hidden_states")
RETURNS = ("encoder_hidden_states", "hidden_states")


FAMILY = Family(
    name="flux",
    classes=("FluxTransformer2DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=STREAMS,
            returns=RETURNS,
            batched=("temb",),
            modules=("attn", "ff", "ff_context"),
            modulation=("norm", "norm1", "temb"),
            attention={"attn": "self"},
        ),
        Blocks(
            "single_transformer_blocks",
            streams=STREAMS,
            returns=RETURNS,
            batched=("temb",),
            modules=("proj_out",),
            idle=("attn", "proj_mlp", "act_mlp"),
            attention={"attn": "self"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "pooled_projections": 0,
        "timestep": 0,
        "guidance": 0,
        "img_ids": None,
        "txt_ids": None,
        "joint_attention_kwargs": None,
        "controlnet_block_samples": 0,
        "controlnet_single_block_samples": 0,
        "controlnet_blocks_repeat": None,
    },
    branches={"0": "cond", "1": "uncond"},
    recipes={"balanced": image_balanced, "fast": image_fast},
)
