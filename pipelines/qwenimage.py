"""Qwen-Image (text to image, editing, ControlNet); its modulation fits no described kind."""

from dataclasses import replace

from accel.family import Blocks, Family
from accel.plan import Plan, as_method

from .published import OF_FLUX, image_balanced, image_fast

BLOCKS = Blocks(
    "transformer_blocks",
    streams=("hidden_states", "encoder_hidden_states"),
    returns=("encoder_hidden_states", "hidden_states"),
    modules=("attn", "img_mlp", "txt_mlp"),
    batched=("encoder_hidden_states_mask", "temb"),
    attention={"attn": "self"},
)

FAMILY = Family(
    name="qwenimage",
    classes=("QwenImageTransformer2DModel",),
    blocks=(BLOCKS,),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "encoder_hidden_states_mask": 0,
        "timestep": 0,
        "img_shapes": 0,
        "guidance": 0,
        "attention_kwargs": None,
        "controlnet_block_samples": 0,
        "additional_t_cond": 0,
    },
    recipes={"balanced": image_balanced, "fast": image_fast},
)


def together() -> Plan:
    """FirstBlockCache at ParaAttention's threshold for FLUX.1-dev; samples decide together."""
    method = as_method("FirstBlockCache", threshold=0.08, per_sample=False)
    return Plan((method,), "balanced", OF_FLUX)


# the time embedding holds the batch twice, once at time 0 for the pictures to be edited
ZERO_TIME = replace(
    FAMILY,
    name="qwenimage_edit",
    config={"zero_cond_t": True},
    blocks=(replace(BLOCKS, batched=None),),
    recipes={"balanced": together, "fast": image_fast},
)
