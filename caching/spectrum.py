"""Spectrum (2603.01623): all outputs so far, fitted by Chebyshev polynomials in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from accel.method import Site

from .forecasters import Weights, newton
from .forecasting import REACH, Forecasting
from .host_memory import got
from .policies import Policy, explain_schedule, schedule
from .state import History, apart


@dataclass(frozen=True)
class Growing:
    """`warmup` steps, then intervals that begin with `interval` and grow by `growth` each.

    Fractions add up: an interval is the whole part of the sum so far.
    """

    interval: int
    growth: float
    warmup: int = 1
    last: bool = False

    def computes(self, index: int, total: int) -> bool:
        if index < self.warmup or (self.last and index == total - 1):
            return True
        return index in _growing_steps(total, self.interval, self.growth, self.warmup)


@lru_cache(256)
def _growing_steps(total: int, interval: int, growth: float, warmup: int) -> frozenset[int]:
    steps, step, length = set(), max(warmup, 1) - 1, float(interval)
    while (step := step + math.floor(length)) < total:
        steps.add(step)
        length = round(length + growth, 3)  # as released
    return frozenset(steps)


@lru_cache(4096)
def chebyshev(
    anchors: tuple[int, ...], index: int, total: int, degree: int, ridge: float, relative: bool
) -> tuple[float, ...]:
    """Weights of the ridge regression on T_0 ... T_degree, evaluated at step `index`.

    With tau = 2 step / total - 1, X_ij = T_j(tau_i) and x_j = T_j(tau): x^T (X^T X + ridge 1)^-1
    X^T. They sum to less than 1, unless the fit is of differences to the newest (`relative`).
    """
    tau = 2 * np.array([*anchors, index]) / total - 1
    basis = np.polynomial.chebyshev.chebvander(tau, degree)
    design, wanted = basis[:-1], basis[-1]
    gram = design.T @ design + ridge * np.eye(degree + 1)
    weights = design @ np.linalg.solve(gram, wanted)
    if relative:
        weights[0] = 1 - weights[1:].sum()
    return tuple(weights.tolist())


class Fitted(History):
    """As a history, for weights that need not sum to 1."""

    def forecast(self, index: int) -> Any:
        leaves, build = apart(super().forecast(index))
        excess = sum(self._weights(self.anchors, index)) - 1
        if abs(excess) > 1e-9:
            for leaf, newest in zip(leaves, map(got, self._kept[0]), strict=True):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                    leaf.add_(newest, alpha=excess)
        return build(leaves)


@dataclass(frozen=True)
class Spectrum(Forecasting):
    """Fit all computed outputs by Chebyshev polynomials in time; compute ever more rarely.

    Attributes:
        interval: the first interval after the warm-up.
        growth: by how much every interval is longer than the one before; 0.75 computes 14 of 50
            steps, 3 computes 10. With interval 1, 0 skips nothing.
        warmup: first steps, all computed (per expert in Wan 2.2).
        degree: of the polynomials.
        ridge: strength of the regularisation.
        mix: share of the fit; the rest is the line through the last two outputs. The paper has 1,
            its authors now advise 0.5 to 1.
        relative: fit differences to the newest output. As published the ridge pulls forecasts
            towards zero: by 4 to 27 % of an output that stays, at these settings and 50 steps.
        carrier: what is forecast: the denoiser's "output" (least memory), or the "hidden" states
            after the last block as published.
        last: also compute the final step; the published schedule does not.
        most: outputs kept at most, the newest; at these settings 50 steps compute 14.

    Keeps every computed output of a branch. A static schedule: samples of a batch do not influence
    one another, and no step waits for the host.
    """

    interval: int = 2
    growth: float = 0.75
    warmup: int = 5
    degree: int = 4
    ridge: float = 0.1
    mix: float = 1.0
    relative: bool = False
    carrier: Literal["output", "hidden"] = "output"
    last: bool = False
    most: int = 20

    carriers: ClassVar[tuple[str, ...]] = ("output", "hidden")
    history: ClassVar[type[History]] = Fitted

    def __post_init__(self) -> None:
        self.check(
            growth=(0 <= self.growth < math.inf, "0 or more"),
            degree=(0 <= self.degree <= 10, "from 0 to 10"),
            ridge=(0 < self.ridge < math.inf, "above 0"),
            mix=(0 <= self.mix <= 1, "from 0 to 1"),
            most=(self.most >= 2, "at least 2"),
        )

    @property
    def policy(self) -> Policy:
        return Growing(self.interval, self.growth, self.warmup, self.last)

    @property
    def kept(self) -> int:
        return self.most

    def weights(self, site: Site) -> Weights:
        def mixed(anchors: Sequence[float], index: float) -> list[float]:
            kept, total = tuple(anchors), site.clock.step.total
            fit = chebyshev(kept, index, total, self.degree, self.ridge, self.relative)
            line = newton(kept[:2], index) + [0.0] * len(kept)
            return [self.mix * f + (1 - self.mix) * a for f, a in zip(fit, line, strict=False)]

        return mixed

    def expect(self, site: Site, steps: int) -> str:
        kept = min(len(schedule(self.policy, steps)), self.most)
        return explain_schedule(
            self.policy, steps, f"on the others {REACH[self.carrier]}; keeps {kept} per branch"
        )
