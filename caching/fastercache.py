"""FasterCache (2410.19355): extrapolate attention, guess the unconditional branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from accel.family import Family
from accel.method import Method, Site, check_fields

from .attention import kinds_of
from .extrapolated_attention import ExtrapolatedAttention
from .guidance_cache import GuidanceCache

SPAN = 20 / 30
"""Part of a run over which the weight of the extrapolation grows to `weight`."""


@dataclass(frozen=True)
class FasterCache(Method):
    """Extrapolate self-attention on some steps, and guess the unconditional branch on most.

    Attributes:
        attention_interval: one of this many steps computes attention, the others extrapolate it
            from its last two computed outputs; 1 switches this half off.
        attention_start: fraction of the run before which all attention is computed.
        weight: of the extrapolation a1 + w (a1 - a0): w grows in proportion to the steps since
            `attention_start` and is `weight` two thirds of a run later.
        guidance_interval: steps from one evaluation of the unconditional branch to the next; 1
            switches this half off.
        guidance_start: fraction of the run before which both branches are always evaluated.
        boost: factor on what the unconditional output differs by from the conditional one: on its
            low frequencies early, on its high ones late. 1 leaves it as it was.
        low_until: fraction of the run up to which low frequencies are boosted.
        high_from: fraction of the run from which high frequencies are boosted.
        compounding: boost anew on every skipped step, as the released code does.

    Defaults are those released for Open-Sora, as fractions of its 30 steps; for CogVideoX
    guidance_start=0.34, boost=1.1, low_until=0.8, high_from=0.6. Attention is extrapolated from
    outputs that are no older than `attention_interval` steps: where the unconditional branch is
    evaluated anew, it is computed. Keeps 2 outputs per self-attention and branch, and 2 of the
    denoiser's. A static schedule. Models with distilled guidance have the attention half only.
    """

    attention_interval: int = 2
    attention_start: float = 7 / 30
    weight: float = 0.9
    guidance_interval: int = 5
    guidance_start: float = 11 / 30
    boost: float = 1.15
    low_until: float = 25 / 30
    high_from: float = 20 / 30
    compounding: bool = False

    level: ClassVar[str] = "attention"
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        fractions = ("attention_start", "guidance_start", "low_until", "high_from")
        check_fields(
            self,
            attention_interval=(self.attention_interval >= 1, "at least 1"),
            guidance_interval=(self.guidance_interval >= 1, "at least 1"),
            weight=(0 <= self.weight < math.inf, "0 or more"),
            boost=(0 < self.boost < math.inf, "above 0"),
            **{n: (0 <= getattr(self, n) <= 1, "a fraction from 0 to 1") for n in fractions},
        )

    def claimed(self) -> tuple[str, ...]:
        """A guidance method too, unless that half is off."""
        return ("caching", "guidance") if self.guidance_interval > 1 else ("caching",)

    def computes_attention(self, index: int, total: int) -> bool:
        """Whether step `index` of a run of `total` must compute attention."""
        interval = self.attention_interval
        return index / total <= self.attention_start or index % interval == interval - 1

    def computes_guidance(self, index: int, total: int) -> bool:
        """Whether step `index` of a run of `total` must evaluate both branches."""
        return index / total <= self.guidance_start or index % self.guidance_interval == 0

    def weights(self, anchors: Sequence[float], index: float, total: int) -> list[float]:
        """Of the last two computed outputs, newest first."""
        if len(anchors) < 2:
            return [1.0]
        grown = self.weight * max(index / total - self.attention_start, 0.0) / SPAN
        return [1 + grown, -grown]

    def boosts(self, since: int, index: int, total: int) -> tuple[float, float]:
        """Factors on the low and the high frequencies of a difference taken at step `since`."""
        steps = range(since + 1, index + 1) if self.compounding else (index,)
        low = math.prod(self.boost for i in steps if i / total <= self.low_until)
        high = math.prod(self.boost for i in steps if i / total >= self.high_from)
        return low, high

    def supports(self, family: Family) -> bool:
        attention = self.attention_interval > 1 and self_attention(family)
        return bool(attention or family.fused or kinds_of(family))

    def expect(self, site: Site, steps: int) -> str:
        fused = bool(site.family.fused) and self.guidance_interval > 1
        attention = self_attention(site.family) and self.attention_interval > 1
        newest: dict[str, int] = {}
        whole = 0
        for i in range(steps):
            guided = not fused or self.computes_guidance(i, steps)
            parts = ("cond", "uncond") if fused and guided else ("cond",)
            fresh = all(i - newest.get(p, -steps) < self.attention_interval for p in parts)
            reuse = attention and not self.computes_attention(i, steps) and fresh
            newest |= {} if reuse else dict.fromkeys(parts, i)
            whole += guided and not reuse
        branch = "" if fused else " in the conditional branch"
        count = sum(self.computes_guidance(i, steps) for i in range(steps))
        return (
            f"computes {whole} of {steps} steps whole{branch}, the unconditional branch in "
            f"{count}; keeps {2 * bool(attention)} outputs per self-attention and branch"
        )

    def install(self, site: Site) -> None:
        kinds = self_attention(site.family)
        attention = ExtrapolatedAttention(site, self, kinds, "FasterCache")
        GuidanceCache(site, self, attention, "FasterCache").install()
        attention.install()


def self_attention(family: Family) -> tuple[str, ...]:
    """The kinds of attention that are extrapolated: not that to the text."""
    return tuple(kind for kind in kinds_of(family) if kind != "cross")
