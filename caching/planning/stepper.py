"""A plan at work: the state of every step made by its rule, and the guard that leaves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from accel.caching.carriers import Output
from accel.caching.forecasters import hold
from accel.caching.state import Cache, History
from accel.method import Site
from accel.step import Run
from accel.work import Work

from .branches import LABEL, Differences, Split
from .combination import Combination
from .foreseen import difference_ahead, latents_ahead
from .passing import RETURNS, passed
from .response import Response, check_arguments, response
from .rule import Rule, extrapolated
from .surprise import surprise
from .transfer import moved
from .walk import replaced

COUNT = "steps computed by the guard"


class Fields(Protocol):
    """What of a plan is needed to run it."""

    @property
    def nodes(self) -> tuple[int, ...]: ...
    @property
    def steps(self) -> int: ...
    @property
    def weights(self) -> tuple[tuple[float, ...], ...]: ...
    @property
    def correct(self) -> bool: ...
    @property
    def sigmas(self) -> tuple[float, ...]: ...
    @property
    def limits(self) -> tuple[float, ...]: ...
    @property
    def guard(self) -> bool: ...
    @property
    def guidance(self) -> tuple[int, ...]: ...


class Held(History):
    """Hands on the newest value itself: as an output it is looked at by nobody but the pipeline."""

    def forecast(self, index: int) -> Any:
        assert self._build is not None, "held output asked for before the first"
        return self._build(list(self._kept[0]))


class Stepper:
    """A plan of outputs at the step seam of one pipeline.

    Samples that are outside their range at a node get the middle of the coming segment too, which
    is then evaluated for the whole batch, and used for those samples alone.
    """

    def __init__(self, plan: Fields, site: Site) -> None:
        self.plan, self.site = plan, site
        self.nodes: tuple[int, ...] = plan.nodes
        self._changes = plan.weights
        self._limits: tuple[float, ...] = ()
        self._groups: list[Combination] = []
        self._extra: set[int] = set()
        self._alone: set[int] = set()
        self._differences = Differences()
        self._responses: dict[Any, Response] = {}
        self._rules: dict[Any, Rule] = {}
        self._key: Any = None
        self._passes = False

    def install(self) -> None:
        clock, report = self.site.clock, self.site.report
        if self.site.keep_on != "device":
            raise ValueError(
                f"Planned of carrier 'output' keeps a few latents where every step combines them, "
                f"on the device, not on {self.site.keep_on!r}; set keep_on='device'"
            )
        clock.on_begin.append(self._begin)
        clock.on_end.append(self._end)
        clock.step_handlers.append(self._step)
        report.keep_once(self._ring_bytes, self._ring_bytes, self._ring_ahead)
        cache = Cache(self.site, hold, 1, Held)
        Output(self.site, cache, self, "Planned", forecasts=True).install()
        if self.plan.guidance:
            kept = self._differences
            report.keep_once(kept.bytes, kept.full_bytes, self._differences_ahead)
            whole = {name: [""] for name in self.site.denoisers}
            report.skip_set("Planned", LABEL, whole)
            Split(self.site, self._by_itself, self._differ, self._guess).install()

    def _ring_bytes(self) -> int:
        return sum(group.bytes() for group in self._groups)

    def _ring_ahead(self, args: Any, kwargs: Any, work: Work) -> int:
        length = sum(group.length for group in self._groups)
        return self._ring_bytes() or length * latents_ahead(self.site, args, kwargs, work)

    def _differences_ahead(self, args: Any, kwargs: Any, work: Work) -> int:
        told = self._differences.full_bytes()
        return told or 2 * difference_ahead(self.site, args, kwargs, work)

    def computes(self, index: int, total: int) -> bool:
        """The policy: nodes of the run going on, and what the guard adds."""
        return index in self.nodes or index in self._extra

    def _by_itself(self) -> bool:
        return self.site.clock.step.index in self._alone

    def _differ(self, differences: list[Tensor]) -> None:
        self._differences.keep(self.site.clock.step.index, differences)

    def _guess(self) -> list[Tensor]:
        return self._differences.guess(self.site.clock.step.index)

    def _begin(self, run: Run) -> None:
        plan, self._groups, self._extra = self.plan, [], set()
        self.nodes, self._changes = moved(
            plan.nodes, plan.weights, plan.sigmas, run.sigmas, plan.steps
        )
        as_made = self.nodes == plan.nodes and run.total == plan.steps
        self._limits = plan.limits if plan.guard and as_made else ()
        self._differences.clear()
        self._alone = set(plan.nodes) - set(plan.guidance) if plan.guidance and as_made else set()
        if len(self.nodes) < run.total:
            scheduler = self.site.pipe.scheduler
            self._passes = type(scheduler) in RETURNS and self.site.clock.last(self._step)
            self._key = (type(scheduler), str(scheduler.config), run.total, *run.sigmas)
            if self._key not in self._responses:
                self._responses[self._key] = response(scheduler, run.total)
            self._groups = [Combination(self._rule(run.total, ()))]

    def _end(self, run: Run) -> None:
        self._groups, self._extra = [], set()
        self._differences.clear()

    def _rule(self, total: int, extra: tuple[int, ...]) -> Rule:
        """The plan's rule with some steps more; a segment that holds one is extrapolated anew."""
        key = self._key, extra
        if key not in self._rules:
            nodes = tuple(sorted({*self.nodes, *extra}))
            found = self._responses[self._key]
            rule = extrapolated(found, nodes, correct=self.plan.correct)
            for j, change in enumerate(self._changes):
                at, following = nodes.index(self.nodes[j]), (*self.nodes, total)[j + 1]
                if following != (*nodes, total)[at + 1]:
                    continue
                added = np.zeros(len(nodes))
                for m, weight in enumerate(change):
                    added[nodes.index(self.nodes[j - m])] = weight
                rule = rule.adjusted(at, added)
            self._rules[key] = rule
        return self._rules[key]

    def _step(
        self, call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any
    ) -> Any:
        run = self.site.clock.run
        if run is None or not self._groups or run.index >= run.total:
            return call(output, t, sample, **rest)
        index = run.index
        if index == 0:
            check_arguments(self.site.pipe.scheduler, rest)
        if index in self.nodes and index and self._limits:
            self._watch(index, run.total, output)
        for group in self._groups:
            if index in group.rule.nodes:
                group.keep(index, output)
        parts = [group.advance(index, group.own(sample)) for group in self._groups]
        state = parts[0]
        if len(parts) > 1:
            state = torch.empty_like(sample)
            for group, part in zip(self._groups, parts, strict=True):
                group.put(part, state)
        if self._passes:
            return passed(self.site.pipe.scheduler, t, state, rest.get("return_dict", True))
        return replaced(call(output, t, sample, **rest), state)

    def _watch(self, index: int, total: int, output: Tensor) -> None:
        """Let the samples leave the plan whose outputs are not what it took them for."""
        number = self.nodes.index(index)
        end = (*self.nodes, total)[number + 1]
        if end - index < 2:
            return
        found = []
        for group in self._groups:
            nodes = group.rule.nodes
            at = nodes.index(index)
            last = range(at - 1, max(at - 3, -1), -1)
            before = [group.kept(m) for m in last]
            found.append(surprise(group.own(output), index, before, [nodes[m] for m in last]))
        outside = (torch.cat(found) > self._limits[number]).tolist()
        groups, begin, middle = [], 0, (index + end) // 2
        for group, values in zip(self._groups, found, strict=True):
            told = outside[begin : begin + len(values)]
            begin += len(values)
            groups += self._left(group, told, index, middle, total)
        self._groups = groups

    def _left(
        self, group: Combination, outside: Sequence[bool], index: int, middle: int, total: int
    ) -> list[Combination]:
        if not any(outside):
            return [group]
        if middle not in self._extra:
            self._extra.add(middle)
            self.site.report.count(COUNT)
        rows = list(range(len(outside))) if group.rows is None else list(group.rows)
        extra = tuple(sorted({*group.rule.nodes, middle} - set(self.nodes)))
        number = group.rule.nodes.index(index) - 1
        leaving = [row for row, out in zip(rows, outside, strict=True) if out]
        staying = [row for row in rows if row not in leaving]
        split = [group.split(self._rule(total, extra), leaving, number)]
        if staying:
            split.append(group.split(group.rule, staying, number))
        return split
