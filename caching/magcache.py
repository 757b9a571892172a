"""MagCache (2506.09045): a schedule made of how the blocks' residual shrinks from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from accel.method import Site, check_fields

from .calibrated import MagCacheRecording
from .forecasters import hold
from .judge import ScheduleJudge, SpanCaching, install_span
from .policies import explain_schedule


@dataclass(frozen=True)
class Magnitudes:
    """Skip while the ratios since the last computed step stay near 1, as MagCache counts.

    The ratios of a skipped stretch multiply to r_1, r_2, …; the sum of |1 - r_i| is its error.

    Attributes:
        ratios: of the residual's magnitude at a step to the one before; the first is not used. For
            another number of steps the nearest is taken.
        threshold: largest error of a stretch.
        longest: most skipped steps in a row.
        retention: part of the run, at its beginning, of which all steps are computed.
    """

    ratios: tuple[float, ...]
    threshold: float
    longest: int
    retention: float

    def computes(self, index: int, total: int) -> bool:
        return index in _computed(self, total)


@cache
def _computed(policy: Magnitudes, total: int) -> frozenset[int]:
    scale = (len(policy.ratios) - 1) / max(total - 1, 1)
    computed, ratio, error, streak = {0}, 1.0, 0.0, 0
    for index in range(1, total):
        if index >= int(policy.retention * total):
            ratio *= policy.ratios[round(index * scale)]
            error += abs(1 - ratio)
            streak += 1
            if policy.threshold > 0 and error <= policy.threshold and streak <= policy.longest:
                continue
        computed.add(index)
        ratio, error, streak = 1.0, 0.0, 0
    return frozenset(computed)


@dataclass(frozen=True)
class MagCache(SpanCaching):
    """Skip the stack of blocks where calibration found its residual to change little.

    Attributes:
        ratios: mean over tokens of the norm of what the blocks add, divided by that of the step
            before, for every step of a run; the first is 1. Made by calibration.
        uncond: the same of the unconditional evaluation, where a pipeline makes it apart; None is
            the same as `ratios`.
        threshold: largest accumulated error of a skipped stretch; 0 skips nothing. Published: 0.24
            on FLUX, 0.12 on Wan 1.3B and HunyuanVideo, 0.24 there for more speed.
        longest: most skipped steps in a row (K). Published: 5 on FLUX, 2 to 6 on video models.
        retention: part of the run, at its beginning, of which all steps are computed. Published:
            0.1 on FLUX, else 0.2.

    A static schedule: samples of a batch do not influence one another, and no step waits for the
    host.
    """

    ratios: tuple[float, ...] | None = None
    uncond: tuple[float, ...] | None = None
    threshold: float = 0.12
    longest: int = 3
    retention: float = 0.2

    def __post_init__(self) -> None:
        check_fields(
            self,
            ratios=(self.ratios is None or len(self.ratios) > 0, "one number a step, or None"),
            uncond=(
                self.uncond is None or len(self.uncond) == len(self.ratios or ()),
                "as many numbers as ratios, or None",
            ),
            threshold=(self.threshold >= 0, "0 or more"),
            longest=(self.longest >= 1, "at least 1"),
            retention=(0 <= self.retention <= 1, "from 0 to 1"),
        )

    def policy(self, branch: str = "cond") -> Magnitudes:
        """The schedule of a branch.

        Raises:
            ValueError: there are no ratios.
        """
        ratios = self.uncond if branch == "uncond" and self.uncond else self.ratios
        if ratios is None:
            raise ValueError(
                "MagCache needs the magnitude ratios of this model; make them with accel "
                "calibrate --for magcache, and enable the plan it writes"
            )
        return Magnitudes(ratios, self.threshold, self.longest, self.retention)

    def recording(self) -> MagCacheRecording:
        """Records full runs, to take the ratios from."""
        return MagCacheRecording(self)

    def expect(self, site: Site, steps: int) -> str:
        kept = "on the others no block runs; keeps 1 hidden state per branch"
        return explain_schedule(self.policy(), steps, kept)

    def install(self, site: Site) -> None:
        self.policy()
        install_span(site, "MagCache", ScheduleJudge(site, self.policy, whole=True), hold, 1)
