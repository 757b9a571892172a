"""Restart: between two levels, noise is added again and taken away again, to undo old errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .adams_bashforth import AdamsBashforth

RHO = 7.0


class Restart(AdamsBashforth):
    """Restart sampling (arXiv 2306.14878, algorithm 1) around Adams-Bashforth.

    Where the run reaches `low`, it goes back up to `high` by fresh noise that makes it a sample of
    that level, and down again, `times` times. That *adds* evaluations, (points - 1) * times for
    each interval: it pays where random samplers would be used, which it beats, not beside a
    deterministic sampler with few steps. A pipeline counts them as steps.

    Random: give the pipeline a generator; where a pipeline passes none on to its scheduler, every
    run takes the same noise.

    Args:
        intervals: (low, high, points, times), levels in (0, 1); an EDM sigma is the level
            sigma / (1 + sigma). `low` moves to the nearest level of the grid.
        order, correct, lower_last: of `AdamsBashforth`.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: an interval that is out of place.
    """

    movable = False

    @register_to_config
    def __init__(
        self,
        intervals: Sequence[Sequence[float]] = ((0.1, 0.67, 4, 2),),
        order: int = 2,
        correct: bool = False,
        lower_last: bool = False,
        **model: Any,
    ) -> None:
        for low, high, points, times in intervals:
            if not (0 < low < high < 1 and points >= 2 and times >= 1):
                raise ValueError(
                    f"an interval is (low, high, points, times) with 0 < low < high < 1, 2 or more "
                    f"points and 1 or more times, got {(low, high, points, times)}"
                )
        super().__init__(order=order, correct=correct, lower_last=lower_last, **model)

    def arranged(self, sigmas: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        grid = [self._level(float(s)).g for s in sigmas.tolist()]
        inner = range(1, len(grid) - 1)
        added: dict[int, list[tuple[float, ...]]] = {}
        for low, high, points, times in self.config.intervals if len(inner) else ():
            place = min(inner, key=lambda k: abs(grid[k] - low))
            if grid[place] >= high:
                raise ValueError(
                    f"the grid's level nearest to {low} is {grid[place]:.3f}, above {high}: give "
                    f"more steps or another interval"
                )
            added.setdefault(place, []).extend([(high, points)] * int(times))
        self._jumps: dict[int, float] = {}  # evaluation before a jump -> level it starts from
        levels, times_ = [sigmas[:1]], [timesteps[:1]]
        for place in range(1, len(grid)):
            for high, points in added.get(place, []):
                self._jumps[sum(map(len, times_)) - 1] = grid[place]
                more, at = self.placed(np.append(_between(high, grid[place], int(points)), 0.0))
                levels.append(more[:-1].to(sigmas))
                times_.append(at.to(timesteps))
            levels.append(sigmas[place : place + 1])
            times_.append(timesteps[place : place + 1])
        return torch.cat(levels), torch.cat(times_)

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        if i not in self._jumps:
            return super().advance(i, y, velocity, generator)
        low, high = self._jumps[i], self._levels[i + 1].g
        y = self.moved(self.corrected(y), low)
        self._past = []
        kept = (1 - high) / (1 - low)
        spread = math.sqrt(high**2 - (kept * low) ** 2)
        return kept * y + spread * self.drawn(y, generator)


def _between(high: float, low: float, points: int) -> np.ndarray:
    """(points - 1,) levels from `high` down to before `low`, even in sigma^(1/7)."""
    ends = [(g / (1 - g)) ** (1 / RHO) for g in (high, low)]
    sigmas = np.linspace(ends[0], ends[1], points)[:-1] ** RHO
    return sigmas / (1 + sigmas)
