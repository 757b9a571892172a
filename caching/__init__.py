"""Feature caching: skip or forecast parts of the denoiser along the sampling trajectory."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from accel.method import Method

from .dbcache import DBCache
from .deepcache import DeepCache
from .first_block_cache import FirstBlockCache
from .hicache import HiCache
from .taylorseer import TaylorSeer

METHODS: dict[str, type[Method]] = {
    "DBCache": DBCache,
    "DeepCache": DeepCache,
    "FirstBlockCache": FirstBlockCache,
    "HiCache": HiCache,
    "TaylorSeer": TaylorSeer,
}

__all__ = ["METHODS", "DBCache", "DeepCache", "FirstBlockCache", "HiCache", "TaylorSeer"]
