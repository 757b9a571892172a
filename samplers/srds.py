"""SRDS: parareal iteration, coarse steps put right by fine ones that run side by side."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields

from .levels import Level
from .parallel import Algorithm, Ask, Parallel


@dataclass(frozen=True)
class SRDS(Method):
    """Self-refining sampling (SRDS, arXiv 2412.08292): a few long steps, then all blocks at once.

    T steps are cut into sqrt(T) blocks. A coarse run takes a block a step; then the fine steps of
    all blocks run side by side, and the coarse run is repeated with what they were off by added. A
    block is exact after as many rounds as its number. Does more work than the plain sampler, in
    fewer evaluations one after another: for batch room to spare. For flow Euler and DDIM, without
    noise of their own. A round that would need more evaluations in a row than there are steps is
    not begun, and then a warning says that the tolerance was not reached; 16 steps have room for
    one round, 36 for three. All samples of a batch go on together: samples share their decisions.

    Attributes:
        tolerance: root mean square by which the result may still move in the last round.
        blocks: 0 for sqrt(T).
    """

    tolerance: float = 0.05
    blocks: int = 0

    level: ClassVar[str] = "step"
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            tolerance=(self.tolerance >= 0, "0 or more"),
            blocks=(self.blocks == 0 or self.blocks >= 2, "0, or 2 or more"),
        )

    def claimed(self) -> tuple[str, ...]:
        """Also what goes by the pipeline's step, where many levels are evaluated in one."""
        return self.claims, "guidance", "sparse attention"

    def supports(self, family: Family) -> bool:
        return True

    def expect(self, site: Site, steps: int) -> str:
        return f"{self.count(steps)} blocks at once; how often depends on the sample"

    def install(self, site: Site) -> None:
        Parallel(site, "SRDS", self.algorithm).install()

    def count(self, steps: int) -> int:
        """Blocks of a run of `steps`."""
        return min(self.blocks or max(2, round(math.sqrt(steps))), steps)

    def algorithm(self, levels: list[Level], first: Tensor, budget: int | None = None) -> Algorithm:
        """From the first state to the last; `budget` evaluations in a row, by default the steps."""
        steps = len(levels) - 1
        budget, blocks = budget or steps, self.count(steps)
        edges = [round(k * steps / blocks) for k in range(blocks + 1)]
        longest = max(b - a for a, b in itertools.pairwise(edges))
        states = [first]
        for a, b in itertools.pairwise(edges):
            states += yield [Ask(a, b, states[-1])]
        coarse, used = states[1:], blocks
        for done in range(blocks):
            left = longest + blocks - done - 1
            if used + left > budget:
                return states[-1], False
            used += left
            fine = states[:-1]
            for k in range(longest):
                going = [i for i in range(done, blocks) if edges[i] + k < edges[i + 1]]
                moved = yield [Ask(edges[i] + k, edges[i] + k + 1, fine[i]) for i in going]
                for i, state in zip(going, moved, strict=True):
                    fine[i] = state
            last, again = states[-1], list(coarse)
            states = [*states[: done + 1], fine[done]]
            for i in range(done + 1, blocks):
                (again[i],) = yield [Ask(edges[i], edges[i + 1], states[-1])]
                states.append(fine[i] + (again[i] - coarse[i]))
            coarse = again
            away = (states[-1] - last).flatten(1).square().mean(1).max().sqrt()
            if float(away) <= self.tolerance:
                break
        return states[-1], True
