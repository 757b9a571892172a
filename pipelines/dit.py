"""DiT (class to image). Guidance is fused, [cond, uncond]; the norms embed time and class."""

from accel.family import Blocks, Family

from .published import image_balanced, image_fast

FAMILY = Family(
    name="dit",
    classes=("DiTTransformer2DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=("hidden_states",),
            returns=("hidden_states",),
            modules=("attn1", "ff"),
            batched=("timestep", "class_labels"),
            attention={"attn1": "self"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "timestep": 0,
        "class_labels": 0,
        "cross_attention_kwargs": None,
    },
    fused=("cond", "uncond"),
    recipes={"balanced": image_balanced, "fast": image_fast},
)
