"""DBCache (cache-dit): FirstBlockCache with blocks before and after, and a forecast between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from accel.method import Site, check_fields

from .adaptive import Threshold
from .forecasters import taylor
from .judge import ChangeJudge, ScheduleJudge, SpanCaching, install_span
from .policies import Bins, Listed, Policy, begins_and_rises, explain_schedule
from .span import Judge

MASKS = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}
"""cache-dit's step masks for 28 steps: lengths of computed and of cached stretches in turn."""


@dataclass(frozen=True)
class DBCache(SpanCaching):
    """Run the first `front` blocks; while what they add is steady, forecast the middle ones.

    Attributes:
        threshold: largest relative change of what the first blocks add, against the last computed
            step. 0 skips nothing; published 0.08 to 0.24 on FLUX.
        front: blocks that always run first and are judged (F in cache-dit's names).
        back: blocks that always run last, after the forecast (B).
        order: of the forecast of what the middle blocks add; 0 reuses it, 1 is TaylorSeer's line.
        warmup: first steps, all computed (W).
        longest: most skipped steps in a row (MC).
        most: most skipped steps in a run.
        mask: a static schedule instead of the threshold, stretched from 28 steps to the run's.
        steps: computed steps by number instead of the threshold; must begin with 0.
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch as published, so that samples share their decisions.

    Costs one host synchronisation per evaluation after the warm-up; none with `mask` or `steps`.
    """

    threshold: float = 0.08
    front: int = 8
    back: int = 0
    order: int = 0
    warmup: int = 8
    longest: int | None = None
    most: int | None = None
    mask: Literal["slow", "medium", "fast", "ultra"] | None = None
    steps: tuple[int, ...] | None = None
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=(self.threshold >= 0, "0 or more"),
            front=(self.front >= 1, "at least 1"),
            back=(self.back >= 0, "0 or more"),
            order=(0 <= self.order <= 3, "from 0 to 3"),
            warmup=(self.warmup >= 1, "at least 1"),
            longest=(self.longest is None or self.longest >= 0, "0 or more, or None"),
            most=(self.most is None or self.most >= 0, "0 or more, or None"),
            mask=(self.mask is None or self.mask in MASKS, f"one of {', '.join(MASKS)}, or None"),
            steps=(
                begins_and_rises(self.steps) and (self.steps is None or self.mask is None),
                "rising step numbers that begin with 0, and without mask",
            ),
        )

    @property
    def policy(self) -> Policy | None:
        """The static schedule, if there is one."""
        if self.steps is not None:
            return Listed(self.steps)
        return None if self.mask is None else Bins(*MASKS[self.mask])

    def expect(self, site: Site, steps: int) -> str:
        kept = f"keeps {self.order + (2 if self.policy is None else 1)} hidden states per branch"
        if self.policy is not None:
            return explain_schedule(
                self.policy, steps, f"the others run {self.front + self.back} blocks; {kept}"
            )
        return (
            f"after {self.warmup} steps runs only {self.front + self.back} blocks while the first "
            f"{self.front} change by less than {self.threshold:.0%}; how often depends on the "
            f"sample; {kept}"
        )

    def install(self, site: Site) -> None:
        judge: Judge
        if (static := self.policy) is not None:
            judge = ScheduleJudge(site, lambda branch: static)
        else:
            rule = Threshold(
                self.threshold, warmup=self.warmup, longest=self.longest, most=self.most
            )
            judge = ChangeJudge(site, rule, self.per_sample)
        install_span(
            site, "DBCache", judge, taylor, self.order + 1, first=self.front, last=self.back
        )
