"""CogVideoX (text and image to video)."""

from accel.family import Blocks, Family
from accel.plan import Plan, as_method

PUBLISHED = "published settings, not measured here"


def balanced() -> Plan:
    """FirstBlockCache at ParaAttention's threshold for video models."""
    return Plan((as_method("FirstBlockCache", threshold=0.06),), "balanced", PUBLISHED)


def fast() -> Plan:
    """TaylorSeer at its released setting for video models, on the denoiser's output."""
    return Plan((as_method("TaylorSeer", interval=5, order=1, warmup=1),), "fast", PUBLISHED)


FAMILY = Family(
    name="cogvideox",
    classes=("CogVideoXTransformer3DModel",),
    blocks=(
        Blocks(
            "transformer_blocks",
            streams=("hidden_states", "encoder_hidden_states"),
            returns=("hidden_states", "encoder_hidden_states"),
            modules=("attn1", "ff"),
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
    fused=("uncond", "cond"),
    branches={"cond_uncond": "both"},
    recipes={"balanced": balanced, "fast": fast},
)
