"""ER-SDE: an extended reverse-time SDE, whose noise is chosen, solved to third order."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .integrator import Integrator
from .levels import clean

START = 0.9999
"""A level at which a flow still has signal; level 1 counts as this."""


class ERSDE(Integrator):
    """ER-SDE-Solver-3 (arXiv 2309.06169, algorithm 3) in lambda = g / (1 - g), with its noise scale
    f(lambda) = lambda (exp(lambda^0.3) + 10). The step to level 0 returns x0.

    Random: give the pipeline a generator; where a pipeline passes none on to its scheduler, every
    run takes the same noise.

    Args:
        order: derivatives of x0 used, plus one: 1, 2 or 3; early steps have fewer.
        noise: of the published amount of noise; 0 leaves it out, which is no sampler of the data.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: order is not 1, 2 or 3, or noise is negative.
    """

    @register_to_config
    def __init__(self, order: int = 3, noise: float = 1.0, **model: Any) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
        if noise < 0:
            raise ValueError(f"noise must be 0 or more, got {noise}")
        self.history = 1
        super().__init__(**model)

    def _reset(self) -> None:
        super()._reset()
        self._found: list[tuple[float, Tensor]] = []

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        g, after = min(self._levels[i].g, START), min(self._levels[i + 1].g, START)
        x0 = clean(y, velocity, self._levels[i].g)
        if after == 0:
            return x0
        now, then = g / (1 - g), after / (1 - after)
        older = [found for found in self._found if found[0] > now]
        self._found = [(now, x0), *older][: self.config.order]
        signal = 1 - after
        keep = scale(then) / scale(now)
        moved = signal / (1 - g) * keep * y + signal * (1 - keep) * x0
        for weight, slope in zip(self._weights(now, then), self._slopes(), strict=False):
            moved = moved.add(slope, alpha=signal * weight)
        spread = math.sqrt(max(then**2 - (now * keep) ** 2, 0.0)) * signal * self.config.noise
        if spread:
            moved = moved.add(self.drawn(y, generator), alpha=spread)
        return moved

    @staticmethod
    def _weights(now: float, then: float) -> tuple[float, float]:
        """Of the first and second derivative of x0 by lambda."""
        step = then - now
        places, weights = np.polynomial.legendre.leggauss(48)
        points = (now + then) / 2 - step / 2 * places
        weights = -step / 2 * weights / np.array([scale(p) for p in points])
        first = step + scale(then) * weights.sum()
        return first, step**2 / 2 + scale(then) * (weights * (points - now)).sum()

    def _slopes(self) -> list[Tensor]:
        found = self._found
        slopes = [(a[1] - b[1]) / (a[0] - b[0]) for a, b in itertools.pairwise(found)]
        if len(slopes) < 2:
            return slopes
        return [slopes[0], (slopes[0] - slopes[1]) / ((found[0][0] - found[2][0]) / 2)]


def scale(level: float) -> float:
    """f(lambda), the published choice."""
    return level * (math.exp(level**0.3) + 10)
