"""DeepCache (2312.00858): reuse a U-Net's deep features, recompute its shallow branch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from accel.method import Method, Site, check_fields

from .forecasters import hold
from .policies import Interval, Listed, Policy, Power, begins_and_rises, explain_schedule
from .state import Cache
from .unet_branch import UNetBranch


@dataclass(frozen=True)
class DeepCache(Method):
    """Compute the whole U-Net every `interval`-th step, else only its shallowest layers.

    Attributes:
        interval: steps from one full step to the next; 1 skips nothing.
        branch: where the shallow branch ends, counted in skip connections: 0 keeps only the first
            (1 ResNet of SD 1.5), 1 is the "layer 0, block 0" of the paper (3 ResNets). Higher
            is slower and closer.
        power: above 1, the same number of full steps lies denser early, where features change
            fastest; 1.5 as published for latent diffusion. 1 is uniform.
        steps: full steps listed instead of `interval`; must begin with 0.

    Keeps one hidden state. A static schedule. ControlNet residuals of the layers that run are
    applied on every step; steps are counted from the first one run, also in image-to-image.
    """

    interval: int = 3
    branch: int = 0
    power: float = 1.0
    steps: tuple[int, ...] | None = None

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("unet",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            interval=(self.interval >= 1, "at least 1"),
            branch=(self.branch >= 0, "0 or more"),
            power=(1 <= self.power < math.inf, "1 or more"),
            steps=(begins_and_rises(self.steps), "rising step numbers that begin with 0"),
        )

    @property
    def policy(self) -> Policy:
        if self.steps is not None:
            return Listed(self.steps)
        uniform = self.power == 1 or self.interval == 1
        return Interval(self.interval) if uniform else Power(self.interval, self.power)

    def expect(self, site: Site, steps: int) -> str:
        return explain_schedule(
            self.policy, steps, f"the others run branch {self.branch}; keeps 1 hidden state"
        )

    def install(self, site: Site) -> None:
        cache = Cache(site, hold, 1)
        UNetBranch(site, cache, self.policy, "DeepCache", branch=self.branch).install()
