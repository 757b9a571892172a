"""HiCache (2508.16984): TaylorSeer's differences on a Hermite basis, which damps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accel.method import Site

from .forecasters import Weights, hermite
from .forecasting import Forecasting


@dataclass(frozen=True)
class HiCache(Forecasting):
    """Compute every `interval`-th step, forecast the others by scaled Hermite polynomials.

    Attributes:
        interval: steps from one computed step to the next; 1 skips nothing.
        order: of the forecast; 0 reuses.
        warmup: first steps, all computed (per expert in Wan 2.2).
        carrier: what is forecast: the denoiser's "output" (cheapest, least memory), the "hidden"
            states after the last block, or every "module" output as published.
        sigma: scale of the polynomials. At order 1 the slope is 2 sigma^2 of TaylorSeer's: half of
            it at the published 0.5, all of it at 0.7071.
        last: also compute the final step; the published schedule does not.
        settle: take the first difference over a whole interval; as published it is taken between
            the last two warm-up steps.

    Keeps `order` + 1 outputs per branch. A static schedule: samples of a batch do not influence
    one another, and no step waits for the host.
    """

    interval: int = 5
    order: int = 2
    warmup: int = 3
    carrier: Literal["output", "hidden", "module"] = "output"
    sigma: float = 0.5
    last: bool = False
    settle: bool = False

    def __post_init__(self) -> None:
        self.check(
            order=(0 <= self.order <= 6, "from 0 to 6"),
            sigma=(0 < self.sigma <= 1, "above 0 and at most 1"),
        )

    @property
    def kept(self) -> int:
        return self.order + 1

    def weights(self, site: Site) -> Weights:
        return hermite(self.sigma)

    @property
    def since(self) -> int:
        return self.warmup - (1 if self.settle else 2)
