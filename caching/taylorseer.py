"""TaylorSeer (2503.06923): forecast what a skipped step would have computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accel.method import Site

from .forecasters import Weights, newton, taylor
from .forecasting import Forecasting


@dataclass(frozen=True)
class TaylorSeer(Forecasting):
    """Compute every `interval`-th step, forecast the others by extrapolation.

    Attributes:
        interval: steps from one computed step to the next; 1 skips nothing.
        order: of the extrapolation; 0 reuses. Above 3x, order 1 is usually best.
        warmup: first steps, all computed (per expert in Wan 2.2).
        carrier: what is forecast: the denoiser's "output" (cheapest, least memory), the "hidden"
            states after the last block, or every "module" output as published.
        basis: "taylor" as released (exact to degree 1), or "newton" (exact to its order).
        last: also compute the final step; the published schedule does not, and on flow models
            with a shifted grid most of the lost fidelity is there.
        settle: take the first difference over a whole interval. As published it is taken between
            the last two warm-up steps, whose slope is noisy, and a whole interval is extrapolated
            with it.

    Keeps `order` + 1 outputs per branch. A static schedule: samples of a batch do not influence
    one another, and no step waits for the host.
    """

    interval: int = 5
    order: int = 1
    warmup: int = 3
    carrier: Literal["output", "hidden", "module"] = "output"
    basis: Literal["taylor", "newton"] = "taylor"
    last: bool = False
    settle: bool = False

    def __post_init__(self) -> None:
        self.check(
            order=(0 <= self.order <= 6, "from 0 to 6"),
            basis=(self.basis in ("taylor", "newton"), "taylor or newton"),
        )

    @property
    def kept(self) -> int:
        return self.order + 1

    def weights(self, site: Site) -> Weights:
        return newton if self.basis == "newton" else taylor

    @property
    def since(self) -> int:
        if self.settle:
            return self.warmup - 1
        # released code takes no difference before the last warm-up step
        return self.warmup - 2 if self.basis == "taylor" else 0
