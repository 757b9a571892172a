"""Stable Diffusion 3 and 3.5 (text, image and ControlNet pipelines).

3.5 has a second attention in some blocks; the last block ends the text stream. Skip-layer guidance
is a second call of half the batch.
"""

from accel.family import Blocks, Family

from .published import image_balanced, image_fast

FAMILY = Family(
    name="sd3",
    classes=("SD3Transformer2DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("encoder_hidden_states", "hidden_states"),
            modules=("attn", "attn2", "ff", "ff_context"),
            batched=("temb",),
            modulation=("norm", "norm1", "temb"),
            attention={"attn": "self", "attn2": "self"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "encoder_hidden_states": 0,
        "pooled_projections": 0,
        "timestep": 0,
        "block_controlnet_hidden_states": 0,
        "joint_attention_kwargs": None,
        "skip_layers": None,
    },
    text="last",
    fused=("uncond", "cond"),
    recipes={"balanced": image_balanced, "fast": image_fast},
)
