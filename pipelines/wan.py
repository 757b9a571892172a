"""Wan 2.1 and 2.2 (text and image to video; 2.2 has a second expert)."""

from accel.family import Blocks, Family
from accel.plan import Plan, as_method

MEASURED = "chosen on the shipped shapes-t2v, 50 steps (benchmarks/results/fidelity.md)"


def balanced() -> Plan:
    """26 of 50 steps."""
    method = as_method("TaylorSeer", interval=2, warmup=2, last=True, settle=True)
    return Plan((method,), "balanced", MEASURED)


def fast() -> Plan:
    """18 of 50 steps."""
    method = as_method("TaylorSeer", interval=3, warmup=2, last=True, settle=True)
    return Plan((method,), "fast", MEASURED)


FAMILY = Family(
    name="wan",
    classes=("WanTransformer3DModel",),
    attributes=("transformer", "transformer_2"),
    blocks=(
        Blocks(
            "blocks",
            streams=("hidden_states",),
            returns=("hidden_states",),
            modules=("attn1", "attn2", "ffn"),
            batched=("encoder_hidden_states", "temb"),
            modulation=("table", "norm1", "temb"),
            attention={"attn1": "self", "attn2": "cross"},
        ),
    ),
    axes={
        "hidden_states": 0,
        "timestep": 0,
        "encoder_hidden_states": 0,
        "encoder_hidden_states_image": 0,
        "attention_kwargs": None,
    },
    recipes={"balanced": balanced, "fast": fast},
)
