"""FirstBlockCache (ParaAttention): skip all blocks but the first while its residual is steady."""

from __future__ import annotations

from dataclasses import dataclass

from accel.method import Site, check_fields

from .adaptive import Threshold
from .forecasters import hold
from .judge import ChangeJudge, SpanCaching, install_span


@dataclass(frozen=True)
class FirstBlockCache(SpanCaching):
    """Run the first block; if its residual changed little, reuse what the others added last time.

    Attributes:
        threshold: largest relative change, mean|r - r_ref| / mean|r_ref|, of the first block's
            residual against the last fully computed step at which the rest is reused. 0 skips
            nothing; published 0.08 (FLUX), 0.06 (HunyuanVideo).
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch as published, so that samples share their decisions.

    Costs one host synchronisation per evaluation of the denoiser.
    """

    threshold: float = 0.08
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_fields(self, threshold=(self.threshold >= 0, "0 or more"))

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"reuses all blocks but the first while its residual changes by less than "
            f"{self.threshold:.0%}; how often depends on the sample; keeps "
            f"2 hidden states per branch"
        )

    def install(self, site: Site) -> None:
        judge = ChangeJudge(site, Threshold(self.threshold), self.per_sample)
        install_span(site, "FirstBlockCache", judge, hold, 1, first=1)
