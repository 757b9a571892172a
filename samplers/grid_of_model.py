"""The noise levels a model is sampled on: those of diffusers' flow Euler, or of its Euler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from .levels import FLOW


def grid_of_model(config: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers for the config of an `Integrator`, to be asked for its levels."""
    flow = config["prediction_type"] == FLOW
    kind: Any = FlowMatchEulerDiscreteScheduler if flow else EulerDiscreteScheduler
    wanted = inspect.signature(kind.__init__).parameters
    values = {k: v for k, v in config.items() if k in wanted}
    shift = config["snr_shift_scale"]
    if not flow and shift != 1:
        plain = kind(**{**values, "rescale_betas_zero_snr": False}).alphas_cumprod.double()
        shifted = plain / (shift + (1 - shift) * plain)
        before = torch.cat([torch.ones(1, dtype=torch.float64), shifted[:-1]])
        values["trained_betas"] = (1 - shifted / before).tolist()
    return kind(**values)
