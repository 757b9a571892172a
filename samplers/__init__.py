"""Samplers that drop into any diffusers pipeline, guidance that costs less, sampling by regions."""

if not __name__.startswith("accel."):
    raise ImportError(f"import accel.{__name__}, not {__name__}: a second copy shares no state")

from diffusers import SchedulerMixin

from accel.method import Method

from .adams_bashforth import AdamsBashforth
from .dpm_solver import DPMSolver
from .pseudo_corrector import PseudoCorrector
from .region_adaptive import RegionAdaptive
from .sampler import SOLVERS, Sampler
from .unipc import UniPC

METHODS: dict[str, type[Method]] = {
    "RegionAdaptive": RegionAdaptive,
    "Sampler": Sampler,
}

__all__ = [
    "METHODS",
    "AdamsBashforth",
    "DPMSolver",
    "PseudoCorrector",
    "RegionAdaptive",
    "SOLVERS",
    "Sampler",
    "SchedulerMixin",  # diffusers looks for it beside a scheduler that it loads
    "UniPC",
]
