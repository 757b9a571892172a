"""Feature caching: skip or forecast parts of the denoiser along the sampling trajectory."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")
