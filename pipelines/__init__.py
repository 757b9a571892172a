"""Model families: what each supported pipeline's denoiser looks like, as data."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")
