"""Which steps of region-adaptive sampling are dense, and how many tokens the others leave out."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Steps of a run of `total` steps, as RAS (2502.10389) sets them.

    Attributes:
        ratio: share of the tokens that a partial step computes.
        start: where partial steps begin, as a fraction of the run.
        end: where they end.
        dense: fractions of the run at which a step is dense in between, to bring all tokens up.
        growth: share of the tokens by which the number left out grows every `every` steps, such
            that its mean over the run stays about 1 - ratio.
        every: steps of one such number.
        multiple: where the number varies, it is rounded down to a multiple of this.
    """

    total: int
    ratio: float
    start: float
    end: float
    dense: tuple[float, ...]
    growth: float = 0.0
    every: int = 4
    multiple: int = 1

    @property
    def first(self) -> int:
        """Index of the first step that may be partial; the step before it is dense."""
        return max(round(self.start * self.total), 1)

    def partial(self, index: int) -> bool:
        """Whether step `index` computes some tokens only."""
        if self.ratio >= 1 or not self.first <= index < round(self.end * self.total):
            return False
        return index not in {round(at * self.total) for at in self.dense}

    def left_out(self, index: int, tokens: int) -> int:
        """How many of `tokens` step `index` leaves out; never all of them.

        Static: c = int((1 - ratio) tokens). With growth: c + growth tokens (s // every -
        ((total + start) // every) // 2), rounded down to a multiple.
        """
        if not self.partial(index):
            return 0
        count = int((1 - self.ratio) * tokens + 1e-6)
        if self.growth:
            middle = (self.total + self.first) // self.every // 2
            ahead = index // self.every - middle
            shifted = count + self.growth * tokens * ahead
            count = math.floor(shifted / self.multiple + 1e-9) * self.multiple
        return min(max(count, 0), tokens - 1)

    def full_before(self, index: int) -> int:
        """The last step before `index` that computes all tokens; -1 if there is none."""
        return next((i for i in range(index - 1, -1, -1) if not self.partial(i)), -1)

    def keeps(self, index: int, order: int = 0) -> bool:
        """Whether keys and values of a full step `index` are read later.

        Args:
            order: of how they go on: 0 reads those of the step before, 1 of two.
        """
        return any(self.partial(later) for later in range(index + 1, index + 2 + order))
