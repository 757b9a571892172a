"""Speeds up diffusers pipelines with one call, and gives them back exactly.

Importing this module adds `enable_acceleration`, `disable_acceleration` and `acceleration` to
`diffusers.DiffusionPipeline`; nothing else of diffusers is touched.
"""

from accel.versions import __version__, check

check()

from diffusers import DiffusionPipeline  # noqa: E402  (after the version check)

from accel.calibration import calibrate  # noqa: E402
from accel.enable import Acceleration, accelerated, acceleration, disable, enable  # noqa: E402
from accel.family import Family  # noqa: E402
from accel.method import Method  # noqa: E402
from accel.parse import parse_method  # noqa: E402
from accel.patch import PatchConflict  # noqa: E402
from accel.plan import Plan  # noqa: E402
from accel.report import Report  # noqa: E402

DiffusionPipeline.enable_acceleration = enable
DiffusionPipeline.disable_acceleration = disable
DiffusionPipeline.acceleration = property(acceleration)

__all__ = [
    "Acceleration",
    "Family",
    "Method",
    "PatchConflict",
    "Plan",
    "Report",
    "__version__",
    "accelerated",
    "acceleration",
    "calibrate",
    "disable",
    "enable",
    "parse_method",
]
