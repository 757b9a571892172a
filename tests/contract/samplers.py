"""Rows of methods in `samplers/`."""

from __future__ import annotations

from accel.samplers import RegionAdaptive

from .row import Row

SAMPLERS = (
    Row(
        RegionAdaptive(ratio=0.5, start=0.2, dense=(0.6,)),
        RegionAdaptive(ratio=1.0),
        ("sd3", "lumina2", "qwenimage", "hunyuan_video", "flux", "ltx"),
        ("flux", "ltx"),
        frozen="rounding",
    ),
)
