"""Model families: what each supported pipeline's denoiser looks like, as data."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from accel.family import Family

from . import (
    animatediff,
    cogvideox,
    dit,
    flux,
    hunyuan_video,
    ltx,
    lumina2,
    mochi,
    pixart,
    qwenimage,
    sana,
    sd,
    sd3,
    svd,
    wan,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (  # of one class, those told apart by their config come first
        wan.FAMILY,
        hunyuan_video.TOKEN_REPLACE,
        hunyuan_video.FAMILY,
        hunyuan_video.VERSION_1_5,
        cogvideox.FAMILY,
        ltx.FAMILY,
        mochi.FAMILY,
        flux.FAMILY,
        sd3.FAMILY,
        pixart.FAMILY,
        sana.FAMILY,
        lumina2.FAMILY,
        qwenimage.ZERO_TIME,
        qwenimage.FAMILY,
        dit.FAMILY,
        sd.SDXL,
        sd.SD,
        svd.FAMILY,
        animatediff.FAMILY,
    )
}

__all__ = ["FAMILIES"]
