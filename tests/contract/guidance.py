"""Rows of methods that leave out the unconditional branch."""

from __future__ import annotations

import math

from accel.samplers import AdaptiveGuidance, GuidedSteps, HeldGuidance, IntervalGuidance

from .row import Row

GUIDANCE = (
    Row(
        IntervalGuidance(0.5, 1.0),
        IntervalGuidance(0, math.inf),
        ("sd_controlnet", "lumina2"),
        ("wan", "cogvideox"),
        frozen="unguided",
    ),
    Row(
        AdaptiveGuidance(-0.99),
        AdaptiveGuidance(1),
        ("sdxl",),
        ("wan", "cogvideox"),
        frozen="unguided",
        static=False,
    ),
    Row(
        HeldGuidance(start=0),
        HeldGuidance(interval=1),
        ("sd", "flux"),
        ("cogvideox",),
        frozen="rounding",
    ),
    Row(
        GuidedSteps((0, 2), 5),
        GuidedSteps((0, 1, 2, 3, 4), 5),
        ("sdxl_controlnet", "dit"),
        ("wan",),
        frozen="unguided",
    ),
)
