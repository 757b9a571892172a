"""RegionAdaptive: RAS (2502.10389). Most steps compute the tokens that matter, hold the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from accel.family import Family
from accel.method import Method, Site, check_fields

from .regions.engine import Engine
from .regions.hold import Hold
from .regions.layouts import LAYOUTS, why_not
from .regions.schedule import Schedule
from .regions.selection import Metric, Starvation
from .regions.solvers import check_scheduler

BETWEEN = {0.3: (11 / 28, 1 / 2, 17 / 28, 5 / 7, 23 / 28), 0.5: (3 / 7, 4 / 7, 5 / 7, 6 / 7)}
"""Where steps in between are dense if less than such a share of the tokens is computed: of 28
steps every third, every fourth."""


@dataclass(frozen=True)
class RegionAdaptive(Method):
    """Compute some tokens of the picture or video per step; the others move on as they did last.

    A token left out keeps its last guided prediction, and its keys and values, to which computed
    tokens attend. After every step the scores of the guided prediction say what the next computes.

    Attributes:
        ratio: share of the image's tokens a partial step computes; 1 skips nothing. Text is always
            computed, so the work does not fall as far.
        start: fraction of the run before which all steps are dense (0.14: 4 of 28 or 30).
        end: fraction of the run after which they are again.
        dense: fractions of the run at which a step in between is dense ({12, 20} of 28, {12, 22}
            of 30), so that error does not pile up.
        metric: score of a token: "std" over channels of what the model predicts, its "l2" norm, or
            the "error" to be expected: by how much going on missed what it was last computed to,
            grown with the steps since. With high=0, which computes the highest scores.
        high: share of the tokens left out that comes from the highest scores: 1 computes the
            lowest, 0 the highest, between them the middle.
        order: how a token left out moves on: 0 as it last did (published), 1 along the line through
            its last two predictions, and its keys and values along theirs, for as much memory more.
        strength: k of exp(k times left out), by which scores change.
        starvation: "fair" brings back what was left out often; "released" does as the released
            code, which at high=1 leaves half of the tokens out for good; "none" changes no scores.
        growth: share of the tokens by which the number left out grows over the run every `every`
            steps, about the same mean (1/16 in the released script for Lumina); 0 keeps it.
        every: steps of one number.
        multiple: the growing number is rounded down to a multiple of this (64 as released).
        continuity: of a video, share of a token's score that is the mean over the frame before,
            its own and the next.
        tile: frames, rows and columns that are chosen together, as whole tiles; `ratio` is rounded
            to them.
        per_sample: samples choose their tokens apart; otherwise samples share their decisions.

    For one-step solvers (flow Euler, DDIM), since a solver that mixes predictions of several steps
    would mix old ones in. A static schedule: which steps are partial, and how many tokens they
    compute, does not depend on the sample, and no step waits for the host. Keeps keys and values of
    every self-attention per branch.
    """

    ratio: float = 0.5
    start: float = 0.14
    end: float = 1.0
    dense: tuple[float, ...] = (0.415, 0.72)
    metric: Metric = "std"
    high: float = 1.0
    order: int = 0
    strength: float = 0.1
    starvation: Starvation = "fair"
    growth: float = 0.0
    every: int = 4
    multiple: int = 1
    continuity: float = 0.0
    tile: tuple[int, int, int] = (1, 1, 1)
    per_sample: bool = True

    level: ClassVar[str] = "tokens"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            ratio=(0 < self.ratio <= 1, "above 0 and at most 1"),
            start=(0 <= self.start <= 1, "from 0 to 1"),
            end=(0 <= self.end <= 1, "from 0 to 1"),
            dense=(all(0 <= d <= 1 for d in self.dense), "fractions from 0 to 1"),
            metric=(self.metric in ("std", "l2", "error"), "'std', 'l2' or 'error'"),
            high=(
                0 <= self.high <= 1 and (self.metric != "error" or self.high == 0),
                "from 0 to 1, and 0 with metric='error': what errs most is computed",
            ),
            order=(self.order in (0, 1), "0 or 1"),
            strength=(self.strength >= 0, "0 or more"),
            starvation=(
                self.starvation in ("fair", "released", "none"),
                "'fair', 'released' or 'none'",
            ),
            growth=(0 <= self.growth < 1, "from 0 to below 1"),
            every=(self.every >= 1, "at least 1"),
            multiple=(self.multiple >= 1, "at least 1"),
            continuity=(0 <= self.continuity <= 1, "from 0 to 1"),
            tile=(
                len(self.tile) == 3 and all(t >= 1 for t in self.tile),
                "three numbers of at least 1: frames, rows, columns",
            ),
        )

    @classmethod
    def by_error(cls, ratio: float = 0.25, **changes: Any) -> RegionAdaptive:
        """What stayed nearest to plain runs on the models that ship (`docs/regions.md`).

        Tokens are chosen by the error to be expected and go on along lines. The first 0.3 and the
        last 0.07 of the run are dense, and of 28 steps every fourth in between below a ratio of
        0.5, every third below 0.3.

        Args:
            ratio: share of the image's tokens a partial step computes.
            changes: of other fields.
        """
        settings = {
            "start": 0.3,
            "end": 0.93,
            "dense": next((steps for below, steps in BETWEEN.items() if ratio < below), ()),
            "metric": "error",
            "high": 0.0,
            "order": 1,
            "starvation": "none",
        }
        return cls(ratio, **{**settings, **changes})

    def claimed(self) -> tuple[str, ...]:
        """Also what attends to what: queries of some tokens fit no map of blocks."""
        return self.claims, "sparse attention"

    def supports(self, family: Family) -> bool:
        return family.name in LAYOUTS

    def why_not(self, family: Family) -> str:
        return why_not(family)

    def schedule(self, total: int) -> Schedule:
        """Which of `total` steps are partial."""
        return Schedule(
            total,
            self.ratio,
            self.start,
            self.end,
            self.dense,
            self.growth,
            self.every,
            self.multiple,
        )

    def expect(self, site: Site, steps: int) -> str:
        schedule = self.schedule(steps)
        partial = [i for i in range(steps) if schedule.partial(i)]
        some = ", ".join(map(str, partial[:12])) + (", ..." if len(partial) > 12 else "")
        return (
            f"computes {steps - len(partial)} of {steps} steps in full, and "
            f"{self.ratio:.0%} of the image's tokens in {len(partial)}"
            + (f" ({some})" if partial else "")
            + "; keeps keys and values of every self-attention"
        )

    def install(self, site: Site) -> None:
        label = type(self).__name__
        check_scheduler(site.pipe.scheduler, label)
        if site.keep_on != "device":
            raise ValueError(
                f"{label} renews parts of its keys and values at every step, so they must stay on "
                f"the device; set keep_on='device', or use fewer tokens"
            )
        Engine(site, Hold(site, self, label), label).install()
