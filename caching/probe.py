"""The probe: what the first blocks add to the hidden states tells whether the others are due."""

from __future__ import annotations

from collections.abc import Sequence

from accel.method import Site

from .adaptive import Threshold, parts_of, refresh, relative_changes, settle
from .forecasters import Weights
from .policies import Policy
from .span import Entry, Judge, Span
from .state import Cache, State

PROBE = "probe"


class ProbeJudge:
    """Skips while what the first blocks add changed little since the last computed step."""

    def __init__(
        self,
        site: Site,
        rule: Threshold,
        per_sample: bool,
        policy: Policy | None = None,
    ) -> None:
        self.site, self.rule, self.per_sample, self.policy = site, rule, per_sample, policy

    def __call__(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        assert entry.probe is not None
        parts = parts_of(state, self.site, len(entry.probe), self.per_sample)
        step = self.site.clock.step
        index, total = step.index - state.first, step.total - state.first
        old = state.extra.get(PROBE)
        changes: Sequence[float] | None = None
        if old is not None and self.rule.free(index, total):
            if self.policy is None:
                changes = relative_changes(entry.probe, old, parts)
            elif not self.policy.computes(index, total):
                changes = [0.0] * len(parts)
        computing, skipping = settle(state, self.rule, changes)
        refresh(state, PROBE, entry.probe, computing)
        return computing, skipping


def install_span(
    site: Site, name: str, judge: Judge, weights: Weights, length: int, first: int, last: int
) -> None:
    """Attach a span to every denoiser of `site`."""
    cache, label = Cache(site, weights, length), f"{name}:blocks"
    skips = {
        attribute: Span(site, cache, label, judge, first, last).attach(attribute, module)
        for attribute, module in site.denoisers.items()
    }
    site.report.skip_set(name, label, skips)
