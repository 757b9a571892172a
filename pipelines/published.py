"""Recipes from published settings, for video transformers of which no trained model ships."""

from accel.plan import Plan, as_method

PUBLISHED = "published settings, not measured here"


def balanced() -> Plan:
    """FirstBlockCache at ParaAttention's threshold for video models."""
    return Plan((as_method("FirstBlockCache", threshold=0.06),), "balanced", PUBLISHED)


def fast() -> Plan:
    """TaylorSeer at its released setting for video models, on the denoiser's output."""
    return Plan((as_method("TaylorSeer", interval=5, order=1, warmup=1),), "fast", PUBLISHED)
