"""Planned sampling: computed steps, and the linear rule between them, fitted to the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields
from accel.step import Run

from .carriers import Output
from .forecasters import hold
from .planning.planner import search
from .planning.response import response
from .planning.rule import Rule, extrapolated
from .planning.walk import Walker, replaced
from .policies import Listed, explain_schedule
from .state import Cache


@dataclass(frozen=True)
class Planned(Method):
    """Compute the steps of a plan, and join them by a multistep rule fitted to this model.

    Made by `accel calibrate --for planned`, which runs a few full samples, or by
    `accel.calibrate(pipe, prompts, budget=12)`.

    Attributes:
        nodes: computed steps of `steps`; must begin with 0.
        steps: steps of a run that the plan was made for.
        weights: for every node, what the fit adds to the weights of the newest outputs (newest
            first) over the segment that begins there; empty leaves the extrapolation as it is.
        correct: once a node is computed, put right what the forecast before it was off by.
        sigmas: noise levels of the steps the plan was made for. Runs of another number of steps
            compute those nearest to the nodes' levels, or at the same share of the run if empty.

    The scheduler's multistep history is replaced by the rule. A static schedule: samples of a batch
    do not influence one another, and no step waits for the host. Keeps the guided outputs at nodes.
    """

    nodes: tuple[int, ...] = ()
    steps: int = 50
    weights: tuple[tuple[float, ...], ...] = ()
    correct: bool = True
    sigmas: tuple[float, ...] = ()

    level: ClassVar[str] = "step"
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        nodes = list(self.nodes)
        rising = not nodes or (nodes[0] == 0 and nodes == sorted(set(nodes)))
        check_fields(
            self,
            nodes=(
                rising and (not nodes or nodes[-1] < self.steps),
                "rising step numbers that begin with 0 and are below `steps`",
            ),
            weights=(
                len(self.weights) in (0, len(nodes)),
                "empty, or as long as nodes",
            ),
            sigmas=(len(self.sigmas) in (0, self.steps), "empty, or one for each of `steps`"),
        )

    def supports(self, family: Family) -> bool:
        return True

    def at(self, total: int, sigmas: Sequence[float | None]) -> tuple[int, ...]:
        """The nodes in a run of `total` steps at these noise levels."""
        if total == self.steps:
            return self.nodes
        own, levels = list(self.sigmas), [s for s in sigmas if s is not None]
        if not own or len(levels) != total:
            own, levels = (
                [i / self.steps for i in range(self.steps)],
                [i / total for i in range(total)],
            )
        places = np.array(levels)
        found = {int(np.abs(places - own[node]).argmin()) for node in self.nodes}
        return tuple(sorted({0, *found}))

    def expect(self, site: Site, steps: int) -> str:
        if steps != self.steps:
            return f"a plan for {self.steps} steps, moved to the nearest noise levels of {steps}"
        return explain_schedule(
            Listed(self.nodes), steps, "the others are one linear combination of what is kept"
        )

    def search(
        self,
        pipe: Any,
        run: Callable[[int], Any],
        samples: int,
        budget: int,
        moves: int,
        progress: Callable[[], None],
    ) -> Planned:
        """A plan of `budget` computed steps for `pipe`.

        Args:
            run: runs calibration sample i.
            moves: shifts of single nodes that are tried, each as long as `budget` steps of every
                sample.
            progress: called after every full run, and every plan tried.
        """
        with Walker(pipe, run, samples) as walker:
            walker.record(progress)
            found = search(walker, budget, moves, progress=progress)
            levels = [s for s in walker.sigmas if s is not None]
            steps = walker.response.steps
        sigmas = tuple(levels) if len(levels) == steps else ()
        return Planned(found.nodes, steps, found.weights, sigmas=sigmas)

    def install(self, site: Site) -> None:
        if not self.nodes:
            raise ValueError(
                "Planned has no nodes: a plan is fitted to a model, and made by `accel calibrate "
                "--for planned --out plan.json`; then enable Plan.load('plan.json')"
            )
        Stepper(self, site).install()


class Stepper:
    """A plan at work at the step seam of one pipeline."""

    def __init__(self, plan: Planned, site: Site) -> None:
        self.plan, self.site = plan, site
        self.rule: Rule | None = None
        self.outputs: list[Tensor] = []
        self._rules: dict[Any, Rule] = {}
        self.nodes: tuple[int, ...] = plan.nodes

    def install(self) -> None:
        clock = self.site.clock
        clock.on_begin.append(self._begin)
        clock.on_end.append(self._end)
        clock.step_handlers.append(self._step)
        Output(self.site, Cache(self.site, hold, 1), self, "Planned").install()

    def computes(self, index: int, total: int) -> bool:
        """The policy: nodes of the run going on."""
        return index in self.nodes

    def _begin(self, run: Run) -> None:
        self.nodes = self.plan.at(run.total, run.sigmas)
        self.rule, self.outputs = None, []
        if len(self.nodes) < run.total:
            scheduler = self.site.pipe.scheduler
            key = (type(scheduler), str(scheduler.config), run.total, *run.sigmas)
            if key not in self._rules:
                self._rules[key] = self.fitted(run)
            self.rule = self._rules[key]

    def fitted(self, run: Run) -> Rule:
        """The rule of the plan for the scheduler of `run`."""
        rule = extrapolated(
            response(self.site.pipe.scheduler, run.total), self.nodes, correct=self.plan.correct
        )
        if len(self.nodes) == len(self.plan.weights):
            for j, change in enumerate(self.plan.weights):
                added = np.zeros(len(self.nodes))
                added[j - np.arange(len(change))] = change
                rule = rule.adjusted(j, added)
        return rule

    def _end(self, run: Run) -> None:
        self.rule, self.outputs = None, []

    def _step(
        self, call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any
    ) -> Any:
        run = self.site.clock.run
        if run is None or self.rule is None or run.index >= len(self.rule.decay):
            return call(output, t, sample, **rest)
        if run.index in self.nodes:
            self.outputs.append(output.detach().to(torch.float32, copy=True))
        found = advance(self.rule, run.index, sample, self.outputs)
        return replaced(call(output, t, sample, **rest), found)


def advance(rule: Rule, index: int, sample: Tensor, outputs: list[Tensor]) -> Tensor:
    """The state after step `index`, from the one before and the outputs at nodes so far."""
    total = sample.to(torch.float32) * float(rule.decay[index])
    for weight, output in zip(rule.weights[index], outputs, strict=False):
        if weight:
            total.add_(output, alpha=float(weight))
    return total.to(sample.dtype)
