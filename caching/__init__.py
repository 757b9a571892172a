"""Feature caching: skip or forecast parts of the denoiser along the sampling trajectory."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from accel.method import Method

from .asdm import FeatureInheritance
from .dbcache import DBCache
from .deepcache import DeepCache
from .faster_diffusion import FasterDiffusion
from .fastercache import FasterCache
from .first_block_cache import FirstBlockCache
from .freqca import FreqCa
from .harmonica import HarmoniCa
from .hicache import HiCache
from .magcache import MagCache
from .pab import PAB
from .spectrum import Spectrum
from .step_rehash import StepRehash
from .taylorseer import TaylorSeer
from .teacache import TeaCache

METHODS: dict[str, type[Method]] = {
    "DBCache": DBCache,
    "DeepCache": DeepCache,
    "FasterCache": FasterCache,
    "FasterDiffusion": FasterDiffusion,
    "FeatureInheritance": FeatureInheritance,
    "FirstBlockCache": FirstBlockCache,
    "FreqCa": FreqCa,
    "HarmoniCa": HarmoniCa,
    "HiCache": HiCache,
    "MagCache": MagCache,
    "PAB": PAB,
    "Spectrum": Spectrum,
    "StepRehash": StepRehash,
    "TaylorSeer": TaylorSeer,
    "TeaCache": TeaCache,
}

__all__ = [
    "METHODS",
    "DBCache",
    "DeepCache",
    "FasterCache",
    "FasterDiffusion",
    "FeatureInheritance",
    "FirstBlockCache",
    "FreqCa",
    "HarmoniCa",
    "HiCache",
    "MagCache",
    "PAB",
    "Spectrum",
    "StepRehash",
    "TaylorSeer",
    "TeaCache",
]
