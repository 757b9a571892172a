"""Recipes from published settings, for families whose recipes were not chosen by measurement."""

from accel.plan import Plan, as_method

PUBLISHED = "published settings, not measured here"
OF_FLUX = "published settings for FLUX.1-dev, not measured here"


def balanced() -> Plan:
    """FirstBlockCache at ParaAttention's threshold for video models."""
    return Plan((as_method("FirstBlockCache", threshold=0.06),), "balanced", PUBLISHED)


def fast() -> Plan:
    """TaylorSeer at its released setting for video models, on the denoiser's output."""
    return Plan((as_method("TaylorSeer", interval=5, order=1, warmup=1),), "fast", PUBLISHED)


def image_balanced() -> Plan:
    """FirstBlockCache at ParaAttention's threshold for FLUX.1-dev."""
    return Plan((as_method("FirstBlockCache", threshold=0.08),), "balanced", OF_FLUX)


def image_fast() -> Plan:
    """TaylorSeer at its released setting for FLUX.1-dev, on the denoiser's output."""
    method = as_method("TaylorSeer", interval=6, order=1, warmup=3)
    return Plan((method,), "fast", OF_FLUX)


def unet_balanced() -> Plan:
    """DeepCache at its released setting for SDXL."""
    return Plan((as_method("DeepCache", interval=3, branch=0),), "balanced", PUBLISHED)


def unet_fast() -> Plan:
    """DeepCache at the widest interval its authors report."""
    return Plan((as_method("DeepCache", interval=5, branch=0),), "fast", PUBLISHED)
