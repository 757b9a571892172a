"""UniPC on the noise levels that all samplers here share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .integrator import Integrator
from .levels import clean, log_snr


class UniPC(Integrator):
    """UniPC (arXiv 2302.04867), variant B2 on x0: a predictor, and a corrector at no cost.

    The method of diffusers' `UniPCMultistepScheduler`, on the levels of flow Euler. What the
    corrector changes is added to the state the pipeline hands in, which is therefore free to have
    changed it. Under a caching method the corrector would learn from forecasts: set `correct=False`
    where many steps are skipped.

    Args:
        order: 2 or 3; early steps have fewer, and so have the last.
        correct: put right the last step by the output at its end.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: order is not 2 or 3.
    """

    @register_to_config
    def __init__(self, order: int = 2, correct: bool = True, **model: Any) -> None:
        if order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {order!r}")
        self.history = 1
        super().__init__(**model)

    def _reset(self) -> None:
        super()._reset()
        self._found: list[tuple[float, Tensor]] = []
        self._last: tuple[int, float] | None = None

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        g, after = self._levels[i].g, self._levels[i + 1].g
        x0 = clean(y, velocity, g)
        if self.config.correct and self._last is not None:
            order, now = self._last
            y = y + (1 - g) * self._lacked(order, log_snr(g) - now, x0)
        found = [(log_snr(g), x0), *self._found][: self.config.order]
        self._found = found
        order = min(len(found), len(self._levels) - 1 - i)
        self._last = order, found[0][0]
        if after == 0:
            return x0
        step = log_snr(after) - found[0][0]
        moved = (after / g) * y - (1 - after) * math.expm1(-step) * x0
        return moved + (1 - after) * self._bent(order, step)

    def _bent(self, order: int, step: float) -> Tensor | float:
        """What the outputs before the newest add to a step of `order`, per signal at its end."""
        ratios, slopes = self._slopes(order, step)
        if order == 1:
            return 0.0
        shares = [0.5] if order == 2 else _shares(ratios, step)
        return -math.expm1(-step) * sum(
            share * slope for share, slope in zip(shares, slopes, strict=True)
        )

    def _lacked(self, order: int, step: float, x0: Tensor) -> Tensor:
        """Corrected less predicted, of the step of `order` that led to the output x0."""
        ratios, slopes = self._slopes(order, step)
        ahead = x0 - self._found[0][1]
        shares = [0.5] if order == 1 else _shares([*ratios, 1.0], step)
        corrected = -math.expm1(-step) * sum(
            share * slope for share, slope in zip(shares, [*slopes, ahead], strict=True)
        )
        return corrected - self._bent(order, step)

    def _slopes(self, order: int, step: float) -> tuple[list[float], list[Tensor]]:
        """Where older outputs lie, in steps from the newest, and (older - newest) / that."""
        (now, newest), past = self._found[0], self._found[1:order]
        ratios = [(then - now) / step for then, _ in past]
        return ratios, [(x0 - newest) / r for (_, x0), r in zip(past, ratios, strict=True)]


def _shares(ratios: list[float], step: float) -> list[float]:
    """The shares rho of the slopes: equation 9 of the paper, with B(h) = e^h - 1 of h = -step."""
    h = -step
    phi, factorial, wanted = math.expm1(h) / h - 1, 1, []
    for k in range(1, len(ratios) + 1):
        wanted.append(phi * factorial / math.expm1(h))
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    powers = np.vander(ratios, increasing=True).T
    return list(map(float, np.linalg.solve(powers, wanted)))
