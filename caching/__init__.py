"""Feature caching: skip or forecast parts of the denoiser along the sampling trajectory."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from accel.method import Method

from .asdm import FeatureInheritance
from .clusca import ClusCa
from .dbcache import DBCache
from .deepcache import DeepCache
from .dicache import DiCache
from .duca import DuCa
from .easycache import EasyCache
from .faster_diffusion import FasterDiffusion
from .fastercache import FasterCache
from .first_block_cache import FirstBlockCache
from .freqca import FreqCa
from .harmonica import HarmoniCa
from .hicache import HiCache
from .magcache import MagCache
from .pab import PAB
from .planned import Planned
from .seacache import SeaCache
from .speca import SpeCa
from .spectrum import Spectrum
from .step_rehash import StepRehash
from .taylorseer import TaylorSeer
from .teacache import TeaCache
from .toca import ToCa

METHODS: dict[str, type[Method]] = {
    "ClusCa": ClusCa,
    "DBCache": DBCache,
    "DeepCache": DeepCache,
    "DiCache": DiCache,
    "DuCa": DuCa,
    "EasyCache": EasyCache,
    "FasterCache": FasterCache,
    "FasterDiffusion": FasterDiffusion,
    "FeatureInheritance": FeatureInheritance,
    "FirstBlockCache": FirstBlockCache,
    "FreqCa": FreqCa,
    "HarmoniCa": HarmoniCa,
    "HiCache": HiCache,
    "MagCache": MagCache,
    "PAB": PAB,
    "Planned": Planned,
    "SeaCache": SeaCache,
    "SpeCa": SpeCa,
    "Spectrum": Spectrum,
    "StepRehash": StepRehash,
    "TaylorSeer": TaylorSeer,
    "TeaCache": TeaCache,
    "ToCa": ToCa,
}

__all__ = [
    "METHODS",
    "ClusCa",
    "DBCache",
    "DeepCache",
    "DiCache",
    "DuCa",
    "EasyCache",
    "FasterCache",
    "FasterDiffusion",
    "FeatureInheritance",
    "FirstBlockCache",
    "FreqCa",
    "HarmoniCa",
    "HiCache",
    "MagCache",
    "PAB",
    "Planned",
    "SeaCache",
    "SpeCa",
    "Spectrum",
    "StepRehash",
    "TaylorSeer",
    "TeaCache",
    "ToCa",
]
