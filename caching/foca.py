"""FoCa (2508.16211): forecasts as steps of an ODE solver, BDF2 to predict, Heun to correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from accel.method import Site

from .forecasters import Weights, newton
from .forecasting import Forecasting
from .state import History, combine


class Stepped(History):
    """The last two computed outputs, and what stood in one step before the newest.

    A step from F_k and F_{k-1} predicts 4/3 F_k - 1/3 F_{k-1} + 2/3 s_k with the slope
    s_k = F_k - F_{k-1} (equation 7), takes the slope there to be (3 F_{k+1} - 4 F_k + F_{k-1}) / 2
    (equation 6), which is s_k again, and goes to F_k + (A + s_k) / 2 (equation 8), where A is the
    slope between the last two computed outputs. So slopes approach A by halves, and x steps after
    the computed output F_0 stands F_0 + A x + (s_0 - A)(1 - 2^-x): a line where s_0 = A.
    """

    def __init__(self, weights: Weights, length: int) -> None:
        super().__init__(weights, length - 1)
        self._before: list[Any] | None = None

    def keep(self, index: int, value: Any) -> None:
        before = None
        if len(self.anchors) > 1:  # with fewer there is no slope to forecast by
            before = self._leaves(index - 1) if index - 1 > self.anchors[0] else self.values[0]
        super().keep(index, value)
        self._before = before

    def forecast(self, index: int) -> Any:
        assert self._build is not None, "forecast from an empty history"
        return self._build(self._leaves(index))

    def _leaves(self, index: int) -> list[Any]:
        if self._before is None:
            weights = self._weights(self.anchors, index)
            return [combine(weights, column) for column in zip(*self.values, strict=True)]
        weights = foca(self.anchors, index)
        columns = zip(*self.values, self._before, strict=True)
        return [combine(weights, column) for column in columns]

    def bytes(self) -> int:
        before = self._before or []
        return super().bytes() + sum(t.nbytes for t in before if isinstance(t, torch.Tensor))


def foca(anchors: Sequence[int], index: int) -> list[float]:
    """Weights of the two computed outputs, newest first, and of what stood one step before."""
    ahead, gap = index - anchors[0], anchors[0] - anchors[1]
    faded = 1 - 0.5**ahead
    line = (ahead - faded) / gap
    return [1 + line + faded, -line, -faded]


@dataclass(frozen=True)
class FoCa(Forecasting):
    """Compute every `interval`-th step, step through the others with BDF2 and Heun's correction.

    Attributes:
        interval: steps from one computed step to the next; 1 skips nothing.
        warmup: first steps, all computed (per expert in Wan 2.2).
        carrier: what is forecast: the denoiser's "output" (cheapest, least memory), the "hidden"
            states after the last block, or every "module" output as published.
        last: also compute the final step; the published schedule does not.
        settle: begin with the last warm-up step, so that the first slope spans a whole interval.

    Equations 7 and 8 of the paper, over single steps: the two outputs a step begins from may be
    forecasts, and the correction takes the mean of the slope there (equation 6) and the slope
    between the last two computed outputs. No code is released; how slopes are taken is our reading.

    Keeps 3 outputs per branch. A static schedule: samples of a batch do not influence one another,
    and no step waits for the host.
    """

    interval: int = 5
    warmup: int = 3
    carrier: Literal["output", "hidden", "module"] = "output"
    last: bool = False
    settle: bool = False

    history: ClassVar[type[History]] = Stepped

    def __post_init__(self) -> None:
        self.check()

    @property
    def kept(self) -> int:
        return 3

    def weights(self, site: Site) -> Weights:
        return newton

    @property
    def since(self) -> int:
        return self.warmup - 1 if self.settle else 0
