"""SpeCa (2509.11628): draft by extrapolation, verify at the last block, recompute if it was off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from accel.method import Site, check_fields

from .adaptive import of_part, parts_of, read
from .blocks import Streams
from .forecasters import taylor
from .judge import SpanCaching, install_span
from .span import Entry, Span
from .state import State

VERIFIED, ERROR = "verified", "error"


@dataclass(frozen=True)
class SpeCa(SpanCaching):
    """Draft steps from the last computed ones; when a draft fails its check, compute the next step.

    A drafted step extrapolates what enters the last block, as TaylorSeer does, and runs that block
    on the draft. The output is compared with its own extrapolation: if they differ by more than
    tau = max(`floor`, `threshold` * `decay`^(index / total)), relative to the output's mean
    magnitude, the next step is computed in full. The drafted step itself is never redone.

    The released code drafts every module's output apart, and throws the verified output of the last
    block away; here the draft is one extrapolation of the stack, and the verified output is used.
    It also drafts right after the first step, whatever its warm-up.

    Attributes:
        threshold: of the error at the first step; 0 drafts nothing.
        decay: of the threshold over the run.
        floor: smallest threshold.
        shortest: drafted steps in a row that are not verified.
        longest: most drafted steps in a row.
        warmup: first steps, all computed.
        order: of the extrapolation.
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch as published, so that samples share their decisions.

    Costs one host synchronisation per verified evaluation of the denoiser.
    """

    threshold: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    shortest: int = 2
    longest: int = 5
    warmup: int = 3
    order: int = 1
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=(self.threshold >= 0, "0 or more"),
            decay=(0 < self.decay <= 1, "above 0 and at most 1"),
            floor=(self.floor >= 0, "0 or more"),
            shortest=(self.shortest >= 0, "0 or more"),
            longest=(self.longest >= max(self.shortest, 1), "at least 1, and at least shortest"),
            warmup=(self.warmup >= 1, "at least 1"),
            order=(0 <= self.order <= 3, "from 0 to 3"),
        )

    def limit(self, index: int, total: int) -> float:
        """The threshold on the error at step `index` of `total` (tau)."""
        return max(self.floor, self.threshold * self.decay ** (index / total))

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"after {self.warmup} steps drafts {self.shortest} to {self.longest} steps in a row, "
            f"running only the last block; how many depends on the sample; keeps "
            f"{self.order + 1} values per stream and of the last block, per branch"
        )

    def install(self, site: Site) -> None:
        judge = DraftJudge(site, self)
        install_span(site, "SpeCa", judge, taylor, self.order + 1, last=1, kind=Draft)


class DraftJudge:
    """Drafts until a verified draft was off, or as many as allowed."""

    def __init__(self, site: Site, method: SpeCa) -> None:
        self.site, self.method = site, method
        self.watched = method.order + 1

    def __call__(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        method, step = self.method, self.site.clock.step
        index, total = step.index - state.first, step.total - state.first
        free = method.threshold > 0 and index >= method.warmup
        chosen: tuple[list[State], list[State]] = ([], [])
        for part in parts_of(state, self.site, len(entry.hidden), method.per_sample):
            error = part.extra.pop(ERROR, 0.0)
            drafts = free and part.tally.streak < method.longest
            part.compute = not drafts or error > method.limit(index, total)
            part.tally.streak = 0 if part.compute else part.tally.streak + 1
            chosen[not part.compute].append(part)
        state.compute = bool(chosen[0])
        return chosen


class Draft(Span):
    """Drafts what enters the last block, and compares its output with an extrapolation."""

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        paths = super().attach(name, denoiser)
        path, block, spec = self.site.family.flat_blocks(denoiser)[-1]
        handler = functools.partial(self._verify, Streams(block, spec))
        self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
        return paths

    def _verify(self, streams: Streams, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = call(*args, **kwargs)
        output = streams.pick(value, self.site.family.stream)
        computing, skipping = self._decided
        index = self.site.clock.step.index
        for part in computing:
            part.keep(VERIFIED, index, of_part(output, part))
        assert isinstance(self.judge, DraftJudge)
        due = [p for p in skipping if p.tally.streak > self.judge.method.shortest]
        if due:
            errors = []
            for part in due:
                seen = of_part(output, part)
                off = (seen - part.histories[VERIFIED].forecast(index)).abs()
                errors.append(off.mean(dtype=torch.float32) / seen.abs().mean(dtype=torch.float32))
            for part, error in zip(due, read(torch.stack(errors)), strict=True):
                part.extra[ERROR] = error
        return value
