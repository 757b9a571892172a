"""TaylorSeer (2503.06923): forecast what a skipped step would have computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from accel.family import Family
from accel.method import Method, Site, check_fields

from .carriers import CARRIERS, KINDS, supported
from .forecasters import newton, taylor
from .policies import Interval, explain_schedule
from .state import Cache


@dataclass(frozen=True)
class TaylorSeer(Method):
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

    level: ClassVar[str] = "step"
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            interval=(self.interval >= 1, "at least 1"),
            order=(0 <= self.order <= 6, "from 0 to 6"),
            warmup=(self.warmup >= 1, "at least 1"),
            carrier=(self.carrier in CARRIERS, f"one of {', '.join(CARRIERS)}"),
            basis=(self.basis in ("taylor", "newton"), "taylor or newton"),
        )

    @property
    def policy(self) -> Interval:
        return Interval(self.interval, self.warmup, self.last)

    def supports(self, family: Family) -> bool:
        return supported(self.carrier, family)

    def expect(self, site: Site, steps: int) -> str:
        reach = {
            "output": "the denoiser is not called",
            "hidden": "no block runs",
            "module": "no attention or feed-forward module runs",
        }[self.carrier]
        return explain_schedule(
            self.policy, steps, f"on the others {reach}; keeps {self.order + 1} per branch"
        )

    def install(self, site: Site) -> None:
        cache = Cache(site, newton if self.basis == "newton" else taylor, self.order + 1)
        # released code takes no difference before the last warm-up step
        since = self.warmup - 2 if self.basis == "taylor" else 0
        since = self.warmup - 1 if self.settle else since
        KINDS[self.carrier](site, cache, self.policy, "TaylorSeer", since).install()
