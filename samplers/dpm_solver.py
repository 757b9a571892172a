"""DPM-Solver++, multistep, on the noise levels that all samplers here share."""

from __future__ import annotations

import math
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .integrator import Integrator
from .levels import clean, log_snr


class DPMSolver(Integrator):
    """DPM-Solver++(2M) and (3M) (arXiv 2211.01095, algorithm 2), in the terms of x0.

    The method of diffusers' `DPMSolverMultistepScheduler`, whose flow levels are others than those
    of flow Euler for the same steps and shift; here they are the same. Level 1 counts as 1 - 1e-6.

    Args:
        order: 2 or 3; early steps have fewer, the last one is first order, and of a run below 15
            steps the last but one is second.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: order is not 2 or 3.
    """

    @register_to_config
    def __init__(self, order: int = 2, **model: Any) -> None:
        if order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {order!r}")
        self.history = order
        super().__init__(**model)

    def _reset(self) -> None:
        super()._reset()
        self._found: list[tuple[float, Tensor]] = []

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        g, after = self._levels[i].g, self._levels[i + 1].g
        self._found = [(log_snr(g), clean(y, velocity, g)), *self._found][: self.config.order]
        left = len(self._levels) - 1 - i
        order = min(len(self._found), left if left == 1 or (left < 3 and i + left < 15) else 3)
        (now, x0), past = self._found[0], self._found[1:order]
        if after == 0:
            return x0
        step = log_snr(after) - now
        decay = math.expm1(-step)
        moved = (after / g) * y - (1 - after) * decay * x0
        if order == 1:
            return moved
        ratio = (now - past[0][0]) / step
        slope = (x0 - past[0][1]) / ratio
        if order == 2:
            return moved - (1 - after) * decay / 2 * slope
        further = (past[0][0] - past[1][0]) / step
        older = (past[0][1] - past[1][1]) / further
        bend = (slope - older) / (ratio + further)
        slope = slope + bend * ratio
        third = (decay + step) / step**2 - 0.5
        return moved + (1 - after) * ((decay / step + 1) * slope - third * bend)
