"""Samplers that drop into any diffusers pipeline, guidance that costs less, sampling by regions."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from diffusers import SchedulerMixin

from accel.method import Method

from .adams_bashforth import AdamsBashforth
from .dpm_solver import DPMSolver
from .er_sde import ERSDE
from .frame_levels import FrameLevels
from .guidance_adaptive import AdaptiveGuidance
from .guidance_held import HeldGuidance
from .guidance_interval import IntervalGuidance
from .guidance_steps import GuidedSteps
from .paradigms import ParaDiGMS
from .pseudo_corrector import PseudoCorrector
from .region_adaptive import RegionAdaptive
from .resolution_regions import RegionUpsampling
from .resolution_stages import ResolutionStages
from .restart import Restart
from .sampler import SOLVERS, Sampler
from .shared_noise import SharedNoise
from .srds import SRDS
from .stork import STORK
from .truncated_start import TruncatedStart
from .unipc import UniPC

METHODS: dict[str, type[Method]] = {
    "AdaptiveGuidance": AdaptiveGuidance,
    "FrameLevels": FrameLevels,
    "GuidedSteps": GuidedSteps,
    "HeldGuidance": HeldGuidance,
    "IntervalGuidance": IntervalGuidance,
    "ParaDiGMS": ParaDiGMS,
    "RegionAdaptive": RegionAdaptive,
    "RegionUpsampling": RegionUpsampling,
    "ResolutionStages": ResolutionStages,
    "SRDS": SRDS,
    "Sampler": Sampler,
    "SharedNoise": SharedNoise,
    "TruncatedStart": TruncatedStart,
}

__all__ = [
    "METHODS",
    "AdamsBashforth",
    "AdaptiveGuidance",
    "DPMSolver",
    "ERSDE",
    "FrameLevels",
    "GuidedSteps",
    "HeldGuidance",
    "IntervalGuidance",
    "ParaDiGMS",
    "PseudoCorrector",
    "RegionAdaptive",
    "RegionUpsampling",
    "ResolutionStages",
    "Restart",
    "SOLVERS",
    "SRDS",
    "STORK",
    "Sampler",
    "SchedulerMixin",  # diffusers looks for it beside a scheduler that it loads
    "SharedNoise",
    "TruncatedStart",
    "UniPC",
]
