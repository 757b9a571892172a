"""Guidance in an interval of noise levels (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from accel.method import Site, check_fields
from accel.noise import is_flow, noise_levels
from accel.step import Step

from .guidance import Guidance, Rule


@dataclass(frozen=True)
class IntervalGuidance(Guidance):
    """Guide at medium noise levels only, and follow the conditional prediction elsewhere.

    Attributes:
        low, high: guidance acts where low < noise / signal <= high; 0 and infinity cover all.

    Noise over signal is the sigma of variance-exploding models and sqrt((1 - abar) / abar) of
    others; a flow at sigma s has s / (1 - s), so that the default, published for SDXL, is the part
    of a flow from 0.84 down to 0.22. For EDM2-S (0.28, 2.9] is published. Raising the guidance
    scale is usual with it. A static schedule: it depends on noise levels alone.
    """

    low: float = 0.28
    high: float = 5.42

    def __post_init__(self) -> None:
        check_fields(
            self,
            low=(0 <= self.low < math.inf, "a noise level, 0 or more"),
            high=(self.high >= self.low, f"at least low ({self.low})"),
        )

    def guides(self, sigma: float) -> bool:
        """Whether guidance acts at `sigma`, noise over signal."""
        return self.low < sigma <= self.high

    def rule(self, site: Site) -> Rule:
        return _Interval(self, site)

    def expect(self, site: Site, steps: int) -> str:
        levels = _planned_levels(site, steps)
        if levels is None:
            return f"guides where {self.low} < noise / signal <= {self.high}"
        count = sum(self.guides(level) for level in levels)
        return computed(site, steps, count)


class _Interval(Rule):
    def __init__(self, method: IntervalGuidance, site: Site) -> None:
        self.method, self.flow = method, is_flow(site.pipe.scheduler)
        self.scheduler = type(site.pipe.scheduler).__name__

    def evaluates(self, step: Step, samples: int) -> Sequence[int]:
        if step.sigma is None:
            raise ValueError(
                f"{self.scheduler} tells no noise levels, which IntervalGuidance goes by; use "
                f"GuidedSteps, which goes by steps, or another scheduler"
            )
        return range(samples if self.method.guides(ratio(step.sigma, self.flow)) else 0)


def ratio(sigma: float, flow: bool) -> float:
    """Noise over signal at `sigma` of a `Step`."""
    if not flow:
        return sigma
    return sigma / (1 - sigma) if sigma < 1 else math.inf


def computed(site: Site, steps: int, count: int) -> str:
    """For `explain()`: `count` of `steps` steps evaluate both branches."""
    if site.family.fused:
        return f"computes {count} of {steps} steps whole, the others without guidance"
    return f"computes {steps} of {steps} steps in the conditional branch, {count} in the other"


def _planned_levels(site: Site, steps: int) -> list[float] | None:
    """Noise over signal of a run of `steps` steps, if the scheduler tells it outside of one."""
    scheduler = site.pipe.scheduler
    try:
        planned = type(scheduler).from_config(scheduler.config)
        planned.set_timesteps(steps)
    except (TypeError, ValueError):  # some must be told the size of the picture first
        return None
    flow, levels = is_flow(scheduler), noise_levels(None, planned)[1]
    return [ratio(level, flow) for level in levels if level is not None]
