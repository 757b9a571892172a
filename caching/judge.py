"""Judges of a span: by how much something changed, or by a schedule fixed before the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from accel.family import Family
from accel.method import Method, Site

from .adaptive import Threshold, parts_of, read, refresh, relative, settle
from .forecasters import Weights
from .policies import Policy
from .span import Entry, Judge, Span
from .state import Cache, State

WATCHED = "watched"
Indicator = Callable[[Entry], Tensor]
Measure = Callable[[Tensor, Tensor, Sequence[State]], Tensor]


def probe(entry: Entry) -> Tensor:
    """What the blocks before the span added to the hidden states (B, S, D)."""
    return entry.probe


class ChangeJudge:
    """Skips while an indicator changed little.

    Attributes:
        watched: tensors like the hidden states that it keeps to compare with.

    Args:
        indicator: (B, ...) of what is known when the span is reached; a tensor that nobody else
            holds.
        previous: measure against the step before, computed or not, as accumulating rules do;
            otherwise against the last computed step.
        rescale: from the relative change to what is held against the threshold.
        measure: the change itself, (P,) for the parts of the batch.
    """

    watched: int = 1

    def __init__(
        self,
        site: Site,
        rule: Threshold,
        per_sample: bool,
        indicator: Indicator = probe,
        previous: bool = False,
        rescale: Callable[[float], float] | None = None,
        measure: Measure = relative,
    ) -> None:
        self.site, self.rule, self.per_sample = site, rule, per_sample
        self.indicator, self.previous = indicator, previous
        self.rescale, self.measure = rescale, measure

    def __call__(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        parts = parts_of(state, self.site, len(entry.hidden), self.per_sample)
        value, old = self.indicator(entry), state.extra.get(WATCHED)
        step = self.site.clock.step
        changes = None
        if old is not None and self.free(step.index - state.first, step.total - state.first):
            changes = read(self.measure(value, old, parts))
            if self.rescale is not None:
                changes = [self.rescale(change) for change in changes]
        computing, skipping = settle(state, self.rule, changes)
        refresh(state, WATCHED, value, parts if self.previous else computing, own=True)
        return computing, skipping

    def free(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` may be skipped at all."""
        return self.rule.free(index, total)


class ScheduleJudge:
    """Computes the steps of a policy, and what was never computed before; looks at no value.

    Args:
        policy: of a branch, by its name.
        whole: count from the first step of the run, not from the denoiser's first.
    """

    def __init__(self, site: Site, policy: Callable[[str], Policy], whole: bool = False) -> None:
        self.site, self.policy, self.whole = site, policy, whole

    def __call__(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        (part,) = parts_of(state, self.site, len(entry.hidden), per_sample=False)
        step = self.site.clock.step
        since = 0 if self.whole else state.first
        due = self.policy(step.branch).computes(step.index - since, step.total - since)
        part.compute = state.compute = part.empty or due
        return ([part], []) if part.compute else ([], [part])


class SpanCaching(Method):
    """A method that leaves out a run of a transformer's blocks."""

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def supports(self, family: Family) -> bool:
        return bool(family.blocks)


def install_span(
    site: Site,
    name: str,
    judge: Judge,
    weights: Weights,
    length: int,
    first: int = 0,
    last: int = 0,
    kind: type[Span] = Span,
) -> None:
    """Attach a span to every denoiser of `site`."""
    cache, label = Cache(site, weights, length), f"{name}:blocks"
    skips = {
        attribute: kind(site, cache, label, judge, first, last).attach(attribute, module)
        for attribute, module in site.denoisers.items()
    }
    site.report.skip_set(name, label, skips)
