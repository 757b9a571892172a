"""A noise level, and what a model predicts there, in the terms of a flow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

FLOW = "flow_prediction"
PREDICTIONS = (FLOW, "epsilon", "v_prediction", "sample")
FLOOR = 1e-6


@dataclass(frozen=True)
class Level:
    """x = signal * x0 + noise * eps."""

    signal: float
    noise: float

    @property
    def scale(self) -> float:
        return self.signal + self.noise

    @property
    def g(self) -> float:
        """Share of noise, 1 to 0."""
        return self.noise / self.scale


def velocity_of(kind: str, output: Tensor, x: Tensor, level: Level) -> Tensor:
    """eps - x0, from a prediction of one of the `PREDICTIONS` at x; a tensor of its own."""
    signal, noise = level.signal, level.noise
    if kind == FLOW:
        return output.clone()
    if kind == "epsilon":
        return output - (x - noise * output) / signal
    if kind == "v_prediction":
        return (noise * x + signal * output) - (signal * x - noise * output)
    return (x - signal * output) / max(noise, 1e-12) - output


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of another scheduler, with the names that are used here.

    Raises:
        ValueError: it belongs to neither a flow nor a model that preserves variance.
    """
    values = {k: v for k, v in config.items() if k != "_use_default_values"}
    if "FlowMatch" in str(values.get("_class_name")) or values.get("use_flow_sigmas"):
        values["prediction_type"] = FLOW
    if values.get("prediction_type") == FLOW and "shift" not in values:
        values["shift"] = values.get("flow_shift", 1.0)
    flow = values.get("prediction_type", FLOW) == FLOW and "shift" in values
    if values and not flow and "beta_schedule" not in values:
        raise ValueError(
            "the scheduler whose config this is belongs to neither a flow nor a model that "
            "preserves variance (it has no beta_schedule), and a sampler in its place would ask "
            "the model at wrong noise levels; keep the pipeline's own scheduler"
        )
    return values


def log_snr(g: float) -> float:
    """lambda = log((1 - g) / g); a level of 1, without any signal, counts as 1 - 1e-6."""
    g = min(max(g, FLOOR), 1 - FLOOR)
    return math.log((1 - g) / g)


def clean(y: Tensor, velocity: Tensor, g: float) -> Tensor:
    """x0 = y - g v."""
    return y.sub(velocity, alpha=g)
