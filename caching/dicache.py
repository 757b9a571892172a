"""DiCache (2508.17356): the first blocks tell when to compute, and how far the rest has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from accel.method import Site, check_fields

from .adaptive import Threshold, of_part, relative
from .forecasters import hold
from .judge import ChangeJudge, SpanCaching, install_span
from .span import Entry, Span
from .state import State

PROBE, GAMMA = "probe", "gamma"


@dataclass(frozen=True)
class DiCache(SpanCaching):
    """Run the first blocks; while their output is steady, extend the residual of the whole stack.

    Relative changes of the probe, which is the output of the first `front` blocks, add up from
    step to step until they reach the threshold. A skipped step adds R' + gamma (R - R') to what
    entered the blocks: R and R' are what the stack added at the last two computed steps, and gamma
    is how far the probe's own residual has moved along, mean|r - r'| / mean|r_1 - r'|, clipped to
    [1, `reach`]. A computed step goes on from the probe.

    Attributes:
        threshold: on the sum; 0 skips nothing. Published: 0.4 on FLUX, 0.1 on HunyuanVideo.
        front: blocks of the probe (m).
        measure: what adds up: the change of the "probe", or its "difference" from the change of
            what enters the first block.
        retention: part of the run, at its beginning, of which all steps are computed.
        tail: last steps, all computed.
        reach: largest gamma. Published: 1.5, and 2 on Wan.
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch as published, so that samples share their decisions.

    Costs one host synchronisation per evaluation of the denoiser after the retention.
    """

    threshold: float = 0.4
    front: int = 1
    measure: Literal["probe", "difference"] = "probe"
    retention: float = 0.2
    tail: int = 1
    reach: float = 1.5
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=(self.threshold >= 0, "0 or more"),
            front=(self.front >= 1, "at least 1"),
            measure=(self.measure in ("probe", "difference"), "probe or difference"),
            retention=(0 <= self.retention <= 1, "from 0 to 1"),
            tail=(self.tail >= 0, "0 or more"),
            reach=(self.reach >= 1, "at least 1"),
        )

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"after {self.retention:.0%} of the steps runs only {self.front} blocks while their "
            f"changes add up to less than {self.threshold:g}; how often depends on the sample; "
            f"keeps 5 hidden states per branch"
        )

    def install(self, site: Site) -> None:
        install_span(
            site, "DiCache", TrajectoryJudge(site, self), hold, 2, first=self.front, kind=Trajectory
        )


class TrajectoryJudge(ChangeJudge):
    """Keeps the probe's residual at computed steps, and places skipped ones between them."""

    def __init__(self, site: Site, method: DiCache) -> None:
        rule = Threshold(method.threshold, accumulate=True, tail=method.tail)
        indicator, measure = (
            (_probe, relative) if method.measure == "probe" else (_both, _difference)
        )
        super().__init__(site, rule, method.per_sample, indicator, True, measure=measure)
        self.method = method
        self.watched = 3 if method.measure == "probe" else 4  # with two residuals of the probe

    def __call__(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        computing, skipping = super().__call__(state, entry)
        residual, index = entry.probe, self.site.clock.step.index
        for part in computing:
            part.keep(PROBE, index, of_part(residual, part), own=True)
        for part in skipping:
            part.extra[GAMMA] = self._gamma(of_part(residual, part), part)
        return computing, skipping

    def free(self, index: int, total: int) -> bool:
        return index > int(self.method.retention * total) and super().free(index, total)

    def _gamma(self, residual: Tensor, part: State) -> Tensor | None:
        values = part.histories[PROBE].values
        if len(values) < 2:
            return None
        (newest,), (older,) = values
        ahead = (residual - older).abs().mean(dtype=torch.float32)
        apart = (newest - older).abs().mean(dtype=torch.float32)
        ratio = torch.where(apart > 0, ahead / apart, torch.ones_like(apart))
        return ratio.clamp(1, self.method.reach)


class Trajectory(Span):
    """Extends the residual of the whole stack along its last two computed steps."""

    whole = True

    def stand_in(self, part: State, stream: str, index: int) -> Tensor:
        values, gamma = part.histories[stream].values, part.extra.pop(GAMMA)
        if gamma is None:
            return values[0][0].clone()
        (newest,), (older,) = values
        return older + gamma.to(older.dtype) * (newest - older)


def _probe(entry: Entry) -> Tensor:
    return entry.hidden.clone()


def _both(entry: Entry) -> Tensor:
    return torch.stack((entry.hidden, entry.origin), 1)


def _difference(new: Tensor, old: Tensor, parts: Sequence[State]) -> Tensor:
    probe, origin = (relative(new[:, i], old[:, i], parts) for i in range(2))
    return (probe - origin).abs()
