"""Model families: what each supported pipeline's denoiser looks like, as data."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from accel.family import Family

from . import cogvideox, flux, ltx, sd, wan

FAMILIES: dict[str, Family] = {
    f.name: f for f in (wan.FAMILY, flux.FAMILY, cogvideox.FAMILY, ltx.FAMILY, sd.SDXL, sd.SD)
}

__all__ = ["FAMILIES"]
