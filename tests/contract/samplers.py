"""Rows of methods in `samplers/`."""

from __future__ import annotations

from accel.samplers import RegionAdaptive, RegionUpsampling, ResolutionStages

from .row import Row

SAMPLERS = (
    Row(
        RegionAdaptive(ratio=0.5, start=0.2, dense=(0.6,)),
        RegionAdaptive(ratio=1.0),
        (
            *("sd3", "lumina2", "qwenimage", "hunyuan_video", "flux", "ltx"),
            *("wan:flow_euler", "wan22:flow_euler", "wan_i2v:flow_euler"),
            *("cogvideox:cogvideox_ddim", "pixart:ddim"),
        ),
        ("flux", "ltx"),
        frozen="rounding",
    ),
    Row(
        ResolutionStages(scales=(0.5, 1.0)),
        ResolutionStages(scales=(1.0, 1.0)),
        ("wan22", "flux", "ltx", "sd3", "lumina2", "qwenimage", "hunyuan_video"),
        (),
    ),
    Row(
        RegionUpsampling(),
        RegionUpsampling((0, 0, 1)),
        ("flux", "wan22", "sd3", "hunyuan_video"),
        (),
    ),
)
