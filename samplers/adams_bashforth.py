"""Adams-Bashforth on the velocity: one model evaluation a step, of order two or more."""

from __future__ import annotations

from typing import Any

import numpy as np
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .integrator import Integrator
from .multistep import integral


class AdamsBashforth(Integrator):
    """The last velocities, extrapolated by the polynomial through them, on uneven steps too.

    With order 2, x+ = x + h ((1 + w) v - w v_prev), w = h / (2 h_prev). With `correct`, the
    velocity found at a predicted state also puts right, by Adams-Moulton, the step that led there,
    at no evaluation more. The correction is added to the state the pipeline hands in, so that what
    the pipeline did to it in between (a mask, a callback) stays.

    Args:
        order: velocities used, 1 (Euler) to 4; early steps have fewer.
        correct: put right the last step, by one velocity more than predicted it (at most 4).
        lower_last: one order less on the last step, which extrapolates furthest.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: order is not 1, 2, 3 or 4.
    """

    @register_to_config
    def __init__(
        self, order: int = 2, correct: bool = False, lower_last: bool = False, **model: Any
    ) -> None:
        if order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, got {order!r}")
        self.history = order + 1 if correct else order
        super().__init__(**model)

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        return self.moved(self.corrected(y), self._levels[i + 1].g, i + 2 == len(self._levels))

    def moved(self, y: Tensor, after: float, last: bool = False) -> Tensor:
        """y taken to the level `after` by the velocities so far."""
        order = self.config.order
        if self.config.lower_last and last:
            order = max(order - 1, 1)
        used = self._past[:order]
        return _added(y, integral([g for g, _ in used], used[0][0], after), used)

    def corrected(self, y: Tensor) -> Tensor:
        """y and what the last step lacked, now that the velocity at its end is known."""
        past = self._past
        if not self.config.correct or len(past) < 2:
            return y
        known = past[: min(self.config.order + 1, 4)]
        better = integral([g for g, _ in known], past[1][0], past[0][0])
        taken = integral([g for g, _ in past[1:]], past[1][0], past[0][0])
        weights = np.zeros(len(past))
        weights[: len(better)] += better
        weights[1:] -= taken
        return _added(y, weights.tolist(), past)


def _added(y: Tensor, weights: list[float], past: list[tuple[float, Tensor]]) -> Tensor:
    """y + sum of weights times velocities."""
    for weight, (_, velocity) in zip(weights, past, strict=True):
        y = y.add(velocity, alpha=weight)
    return y
