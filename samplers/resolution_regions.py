"""RegionUpsampling: edges get full resolution before the rest does (RALU, 2507.08422)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from accel.family import Family
from accel.method import Method, Site, check_fields

from .regions.halves import TOLD
from .regions.upsampling import Upsampling


@dataclass(frozen=True)
class RegionUpsampling(Method):
    """Half the resolution first, then full resolution at edges, then everywhere.

    Latents are upsampled to the nearest, so that four share one noise; with x of data time t (x =
    t x0 + (1 - t) eps) at the end e of a stage, the next begins again at s = e / (Z (1 - e) + e):
    x' = x / (Z (1 - e) + e) + (1 - s) n, where n, of covariance I - 11^T / Z^2 on those four and
    1 - 1 / Z^2 elsewhere, makes all noise independent again.

    Attributes:
        steps: how the steps are divided among the three stages.
        ends: data time at which each stage ends; the last is 1.
        shifts: shift of the noise levels within each stage.
        strength: Z, at least 2; the released value matches the density of timesteps.
        upsampled: share of the low-resolution tokens that get full resolution in the second stage.
        edges: where to look for edges: in the decoded "picture", or in the "latents".

    Defaults are those released for about 4x on FLUX; for 7x: steps=(2, 3, 5), ends=(0.2, 0.3, 1),
    shifts=(8.141, 2.856, 2.193), strength=6.261, upsampled=0.1. Released code finds edges by
    Canny; here it is the mean gradient. Positions are one list for a batch, so that samples share
    their decisions. Described for FLUX; also for SD3, Wan and HunyuanVideo, whose videos choose
    over space and time, and where `upsampled` is rounded so that the tokens fill their frames. A
    static schedule; keeps the noise the run began with.
    """

    steps: tuple[int, int, int] = (5, 6, 7)
    ends: tuple[float, float, float] = (0.3, 0.45, 1.0)
    shifts: tuple[float, float, float] = (5.019, 2.589, 2.226)
    strength: float = 6.317
    upsampled: float = 0.3
    edges: Literal["picture", "latents"] = "picture"

    level: ClassVar[str] = "sampler"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            steps=(
                len(self.steps) == 3 and all(n >= 0 for n in self.steps) and sum(self.steps) > 0,
                "three numbers, not all 0",
            ),
            ends=(
                len(self.ends) == 3 and 0 < self.ends[0] < self.ends[1] < self.ends[2] == 1,
                "three rising numbers above 0, the last of them 1",
            ),
            shifts=(len(self.shifts) == 3 and min(self.shifts) > 0, "three numbers above 0"),
            strength=(self.strength >= 2, "at least 2, below which there is no such noise"),
            upsampled=(0 < self.upsampled < 1, "above 0 and below 1"),
            edges=(self.edges in ("picture", "latents"), "'picture' or 'latents'"),
        )

    def supports(self, family: Family) -> bool:
        return family.name in ("flux", *TOLD)

    def why_not(self, family: Family) -> str:
        known = ", ".join(("flux", *TOLD))
        return f"tokens of two resolutions need positions token by token, described for {known}"

    def claimed(self) -> tuple[str, ...]:
        """Also what attends to what: tokens of two resolutions fit no map of blocks."""
        return self.claims, "sparse attention"

    def divided(self, total: int) -> list[int]:
        """The stage (0, 1, 2) of each of `total` steps."""
        parts = [sum(self.steps[: i + 1]) / sum(self.steps) for i in range(2)]
        first, second = (round(part * total) for part in parts)
        return [int(i >= first) + int(i >= second) for i in range(total)]

    def restart(self, end: float) -> float:
        """Data time s at which a stage begins, the one before having ended at `end`."""
        return end / (self.strength * (1 - end) + end)

    def expect(self, site: Site, steps: int) -> str:
        counts = [self.divided(steps).count(i) for i in range(3)]
        return (
            f"computes {steps} of {steps} steps: {counts[0]} at half resolution, {counts[1]} with "
            f"{self.upsampled:.0%} of it at full, {counts[2]} at full"
        )

    def install(self, site: Site) -> None:
        Upsampling(site, self).install()
