"""What methods that compute on a schedule and forecast the other steps have in common."""

from __future__ import annotations

import abc
from typing import ClassVar

from accel.family import Family
from accel.method import Method, Site, check_fields

from .carriers import CARRIERS, KINDS, supported
from .forecasters import Weights
from .policies import Interval, Policy, explain_schedule
from .state import Cache, History

REACH = {
    "output": "the denoiser is not called",
    "hidden": "no block runs",
    "module": "no attention or feed-forward module runs",
}


class Forecasting(Method):
    """A schedule, a rule for the weights of kept outputs, and a carrier.

    Class attributes:
        carriers: those the method can be set to.
        history: what keeps the outputs and combines them.
    """

    interval: int
    warmup: int
    carrier: str
    last: bool

    carriers: ClassVar[tuple[str, ...]] = CARRIERS
    history: ClassVar[type[History]] = History
    level: ClassVar[str] = "step"
    claims: ClassVar[str] = "caching"

    @property
    @abc.abstractmethod
    def kept(self) -> int:
        """Outputs kept per branch."""

    @abc.abstractmethod
    def weights(self, site: Site) -> Weights:
        """The rule for the weights of the kept outputs."""

    @property
    def since(self) -> int:
        """First step, counted from the denoiser's first, whose output may be kept."""
        return 0

    @property
    def policy(self) -> Policy:
        return Interval(self.interval, self.warmup, self.last)

    def check(self, **rules: tuple[bool, str]) -> None:
        """Check the fields that all of these methods have, and `rules`."""
        check_fields(
            self,
            interval=(self.interval >= 1, "at least 1"),
            warmup=(self.warmup >= 1, "at least 1"),
            carrier=(self.carrier in self.carriers, f"one of {', '.join(self.carriers)}"),
            **rules,
        )

    def supports(self, family: Family) -> bool:
        return supported(self.carrier, family)

    def expect(self, site: Site, steps: int) -> str:
        return explain_schedule(
            self.policy, steps, f"on the others {REACH[self.carrier]}; keeps {self.kept} per branch"
        )

    def install(self, site: Site) -> None:
        cache = Cache(site, self.weights(site), self.kept, self.history)
        name = type(self).__name__
        KINDS[self.carrier](site, cache, self.policy, name, self.since).install()
