"""TeaCache (2411.19108): skip all blocks while the first one's modulated input is steady."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from accel.method import Site, check_fields

from .adaptive import Threshold
from .calibrated import TeaCacheRecording
from .forecasters import hold
from .indicators import INDICATORS, own_indicator
from .judge import ChangeJudge, SpanCaching, install_span
from .teacache_published import PUBLISHED, Published, published


@dataclass(frozen=True)
class TeaCache(SpanCaching):
    """Skip the stack of blocks while the estimated change of its output adds up to little.

    The relative change of an indicator since the step before, put into a polynomial, estimates the
    relative change of the output. Estimates add up until they reach the threshold; then a step is
    computed, and the sum begins anew. A skipped step adds what the blocks added last.

    Attributes:
        threshold: on the sum; 0 skips nothing. Published: 0.25 to 0.8 on FLUX, 0.05 to 0.08 on Wan
            1.3B and 0.14 to 0.2 on 14B, 0.1 to 0.3 on CogVideoX 1.5, 0.03 to 0.05 on LTX-Video.
        coefficients: of the polynomial, highest power first, as calibrated; or the name of a
            published set. None takes the published set of this model, and is refused where there
            is none. Below 0 the polynomial counts as 0, which the released code does not do.
        indicator: "modulated" is the input of the first block's attention, "embedding" the time
            embedding that the blocks are given; None is the one the coefficients were made for.
        warmup: first steps, all computed.
        tail: last steps, all computed.
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch as published, so that samples share their decisions.

    Costs one host synchronisation per evaluation of the denoiser.
    """

    threshold: float = 0.25
    coefficients: tuple[float, ...] | str | None = None
    indicator: Literal["modulated", "embedding"] | None = None
    warmup: int = 1
    tail: int = 1
    per_sample: bool = True

    def __post_init__(self) -> None:
        named = self.coefficients
        check_fields(
            self,
            threshold=(self.threshold >= 0, "0 or more"),
            coefficients=(
                named in PUBLISHED if isinstance(named, str) else named is None or len(named) > 0,
                f"numbers, or one of {', '.join(PUBLISHED)}",
            ),
            indicator=(
                self.indicator in (None, "modulated", "embedding"),
                "modulated, embedding or None",
            ),
            warmup=(self.warmup >= 1, "at least 1"),
            tail=(self.tail >= 0, "0 or more"),
        )

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"runs no block while the estimated change adds up to less than {self.threshold:g}; "
            f"how often depends on the sample; keeps 2 hidden states per branch"
        )

    def install(self, site: Site) -> None:
        fitted = self.fitted(site)
        indicator = INDICATORS[self.indicator or fitted.indicator or own_indicator(site.family)]
        rule = Threshold(self.threshold, accumulate=True, warmup=self.warmup, tail=self.tail)
        judge = ChangeJudge(
            site, rule, self.per_sample, indicator, True, polynomial(fitted.coefficients)
        )
        install_span(site, "TeaCache", judge, hold, 1)

    def recording(self) -> TeaCacheRecording:
        """Records full runs, to fit the coefficients to."""
        return TeaCacheRecording(self)

    def fitted(self, site: Site) -> Published:
        """The coefficients in use, and the indicator they are for.

        Raises:
            ValueError: none are given, and none are published for the model of `site`.
        """
        if isinstance(self.coefficients, str):
            return PUBLISHED[self.coefficients]
        if self.coefficients is not None:
            return Published(self.coefficients, None)
        found = published(next(iter(site.denoisers.values()))) if len(site.denoisers) == 1 else None
        if found is None:
            raise ValueError(
                f"TeaCache has no published coefficients for this model (family "
                f"{site.family.name}); make them with accel calibrate --for teacache, or name a "
                f"set: {', '.join(PUBLISHED)}"
            )
        return found


def polynomial(coefficients: tuple[float, ...]) -> Callable[[float], float]:
    """The polynomial with these coefficients, highest power first; at least 0."""

    def value(change: float) -> float:
        total = 0.0
        for coefficient in coefficients:
            total = total * change + coefficient
        return max(total, 0.0)

    return value
