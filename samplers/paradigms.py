"""ParaDiGMS: Picard iteration over a sliding window of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields

from .levels import Level
from .parallel import Algorithm, Ask, Parallel


@dataclass(frozen=True)
class ParaDiGMS(Method):
    """Evaluates `window` steps at once, again until they agree (ParaDiGMS, arXiv 2305.16317).

    Does about twice the work, in fewer evaluations one after another: it pays where a batch of
    `window` costs little more than one, and never on a device that is busy with one sample already.
    For flow Euler and DDIM, without noise of their own. All samples of a batch go on together, as
    far as the last of them: samples share their decisions. Caching, guidance methods and sparse
    attention, which go by the pipeline's step, are refused beside it.

    Attributes:
        window: steps evaluated together; 1 is the plain sampler.
        tolerance: root mean square, in shares of the noise at a level, by which a state may still
            move when it is left; 0 repeats the plain sampler.
    """

    window: int = 8
    tolerance: float = 0.1

    level: ClassVar[str] = "step"
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            window=(self.window >= 1, "1 or more"),
            tolerance=(self.tolerance >= 0, "0 or more"),
        )

    def claimed(self) -> tuple[str, ...]:
        """Also what goes by the pipeline's step, where many levels are evaluated in one."""
        return self.claims, "guidance", "sparse attention"

    def supports(self, family: Family) -> bool:
        return True

    def expect(self, site: Site, steps: int) -> str:
        return f"{min(self.window, steps)} steps at once; how often depends on the sample"

    def install(self, site: Site) -> None:
        if self.window > 1:
            Parallel(site, "ParaDiGMS", self.algorithm).install()

    def algorithm(self, levels: list[Level], first: Tensor) -> Algorithm:
        """From the first state to the last, over the levels of a run."""
        steps = len(levels) - 1
        states = [first] * (steps + 1)
        floors = [max(level.g, levels[-2].g) for level in levels]
        (states[1],) = yield [Ask(0, 1, first)]
        states[2:] = [states[1]] * (steps - 1)
        begin = 1
        while begin < steps:
            end = min(begin + self.window, steps)
            moved = yield [Ask(j, j + 1, states[j]) for j in range(begin, end)]
            fresh, errors = [moved[0]], []
            for j in range(begin + 1, end):
                fresh.append(fresh[-1] + (moved[j - begin] - states[j]))
            for j, state in enumerate(fresh, start=begin + 1):
                away = (state - states[j]).flatten(1).square().mean(1).max().sqrt()
                errors.append(away / floors[j])
            far = (torch.stack(errors) > self.tolerance).tolist()
            done = far.index(True) if True in far else len(far)
            done = max(done, 1)
            states[begin + 1 : end + 1] = fresh
            states[end + 1 :] = [fresh[-1]] * (steps - end)
            begin += done
        return states[-1], True
