"""The search for a plan: schedules walked within a limit of cost, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .apart import fit_apart, splits
from .carried import Carried, carried
from .foretold import Foretold, Part
from .gradient import Loss, latent, refined
from .planner import HISTORY, Fitted, Known, candidates, fit, predictions
from .rule import extrapolated
from .schedule import best_schedules, neighbours, parts
from .surprise import MARGIN
from .walk import Walker

CEILING = {"normal": 1.5, "high": 5.0, "gradient": 5.0}
"""Full runs of every sample that the search may cost: 12 and 40 for 8 samples."""
PROBED = 2
"""Samples that walk ahead of the others."""


class Search:
    """Walks schedules, keeps the best.

    Attributes:
        best: the nearest so far, on samples left out of its fit.
        tried: all that were walked.
        along: whether every segment is fitted, or the last alone.
        kinds: decibels of one schedule fitted in its last segment alone, and in every one.
        split: the nearest with the branches of guidance apart, and the nodes that evaluate both.
        ceiling: most denoising steps that may be computed, in steps of one sample.
    """

    def __init__(
        self,
        walker: Walker,
        effort: str = "normal",
        history: int = HISTORY,
        progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self.walker, self.history, self.progress = walker, history, progress
        self.samples, self.foretold = len(walker.first), Foretold(walker)
        self.ceiling = CEILING[effort] * self.samples * walker.response.steps
        self.tried: dict[tuple[int, ...], Fitted] = {}
        self.known: Known = {}
        self.best: Fitted | None = None
        self.split: tuple[Fitted, tuple[int, ...]] | None = None
        self.along = False
        self.kinds: tuple[float, float] | None = None

    def affordable(self, nodes: tuple[int, ...]) -> bool:
        """Whether walking `nodes` stays below the ceiling; the first output is known."""
        new = sum(nodes[: j + 1] not in self.known for j in range(1, len(nodes)))
        return self.walker.evaluations + new * self.samples <= self.ceiling

    def measure(self, nodes: tuple[int, ...]) -> Fitted:
        """Walk a schedule."""
        one = fit(self.walker, nodes, history=self.history, along=self.along, known=self.known)
        self.tried[nodes] = one
        if self.best is None or one.decibels() > self.best.decibels():
            self.best = one
        kept = {self.best.nodes[: j + 1] for j in range(len(nodes))}
        self.known = {n: stop for n, stop in self.known.items() if n in kept}
        self.progress(min(self.walker.evaluations / self.ceiling, 1.0))
        return self.best

    def predicted(self, budget: int) -> Fitted:
        """The best of the schedules foretold to be, as many as are affordable."""
        self.probed(budget)
        for nodes in candidates(self.walker, budget, self.foretold):
            if self.best is None:
                self.measure(nodes)
                self.judged()
            elif self.affordable(nodes):
                self.measure(nodes)
        assert self.best is not None
        return self.best

    def probed(self, budget: int) -> None:
        """Learn from a few samples by how much outputs answer to states, if affordable.

        They walk the schedule that the exact search predicts best.
        """
        part, steps = Part(self.walker, PROBED), self.walker.response.steps
        cost = (budget - 1) * (part.samples + self.samples)
        if 1 < budget < steps and self.walker.evaluations + cost <= self.ceiling:
            nodes = best_schedules(predictions(self.walker)[0], steps, budget)[0].nodes
            known = Known()
            fit(part, nodes, history=self.history, along=False, known=known)
            stops = [(s[-1], stop.state, stop.output) for s, stop in known.items() if len(s) > 1]
            self.foretold = Foretold(self.walker, part.answers(stops))

    def judged(self) -> Fitted:
        """The best, or its schedule fitted in every segment, if affordable, where that ends nearer.

        A segment's fit looks no further than its end, only the whole run tells. What is nearer is
        tried from then on.
        """
        assert self.best is not None
        best, known = self.best, Known()
        cost = (len(best.nodes) - 1) * self.samples
        if not self.along and self.walker.evaluations + cost <= self.ceiling:
            every = fit(self.walker, best.nodes, history=self.history, known=known)
            self.kinds = best.decibels(), every.decibels()
            if self.kinds[1] > self.kinds[0]:
                self.along, self.best, self.known = True, every, known
                self.tried[best.nodes] = every
        return self.best

    def apart(self, budget: int) -> None:
        """Plans of the branches of guidance apart, for the same work."""
        for nodes, guidance in splits(self.walker, budget):
            if self.walker.evaluations + (budget + 1) * self.samples > self.ceiling:
                return
            one = fit_apart(self.walker, nodes, guidance, self.history, self.along)
            if self.split is None or one.decibels() > self.split[0].decibels():
                self.split = one, guidance

    def moved(self) -> Fitted:
        """The best after shifts of single nodes, those foretold to be best first."""
        assert self.best is not None
        while True:
            options = [
                nodes
                for nodes in neighbours(self.best.nodes, self.walker.response.steps)
                if nodes not in self.tried and self.affordable(nodes)
            ]
            if not options:
                return self.best
            self.measure(max(options, key=self.foretold.decibels))


def search(
    walker: Walker,
    budget: int,
    effort: str = "normal",
    history: int = HISTORY,
    progress: Callable[[float], None] = lambda share: None,
) -> Search:
    """A plan of `budget` computed steps within the cost that `effort` allows.

    The schedules foretold best are walked, as many as the cost allows; with effort "high" shifts
    of single nodes from the best one too. Each is measured on samples left out of its fit. The
    first tells whether every segment is fitted, or the last alone.
    """
    found = Search(walker, effort, history, progress)
    found.predicted(budget)
    if effort != "normal":
        found.apart(budget)
        found.moved()
    return found


def calibrated(
    pipe: Any,
    run: Callable[[int], Any],
    samples: int,
    budget: int,
    effort: str,
    progress: Callable[[float], None],
    loss: Loss | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a plan for `pipe`, and what was measured on the way."""
    done = 0
    share = 0.2 if effort == "gradient" else 1.0

    def recorded() -> None:
        nonlocal done
        done += 1
        progress(share * done / samples / CEILING[effort])

    with Walker(pipe, run, samples) as walker:
        walker.record(recorded, inside=effort != "normal")
        others = [carried(walker, name, budget) for name in walker.inside]
        told = search(walker, budget, effort, progress=lambda p: progress(share * p))
        assert told.best is not None
        found = told.best
        guidance: tuple[int, ...] = ()
        measured = _measured(walker, found, len(told.tried)) | {"budget": budget}
        if told.kinds is not None:
            measured["last_alone_db"], measured["along_db"] = told.kinds
        if effort != "normal":
            measured["output_db"] = found.decibels()
        for other in others:
            if other is not None:
                measured[f"{other.carrier}_db"] = other.decibels()
        if told.split is not None:
            measured["guidance_db"] = told.split[0].decibels()
            if told.split[0].decibels() > found.decibels():
                found, guidance = told.split
                measured |= _measured(walker, found, len(told.tried))
        best = max((o for o in others if o is not None), key=Carried.decibels, default=None)
        inside = best is not None and best.decibels() > found.decibels()
        if effort == "gradient" and not guidance and not inside:
            start = tuple(
                row or (0.0,) * min(j + 1, HISTORY) for j, row in enumerate(found.weights)
            )
            found, gained = refined(
                walker,
                replace(found, weights=start),
                loss or latent,
                progress=lambda p: progress(share + (1 - share) * p),
            )
            measured |= gained
        measured["cost"] = walker.evaluations / walker.response.steps
        if best is not None and inside:
            progress(1.0)
            measured = {
                k: v for k, v in measured.items() if k not in ("predicted", "error", "rule")
            }
            return best.fields(_levels(walker)), measured | {"held_out_db": best.decibels()}
    progress(1.0)
    fields = {
        "nodes": found.nodes,
        "steps": walker.response.steps,
        "weights": found.weights,
        "sigmas": _levels(walker),
        "guidance": guidance,
        "limits": tuple(float(MARGIN * row.max()) for row in found.surprises),
    }
    return fields, measured


def _levels(walker: Walker) -> tuple[float, ...]:
    levels = [s for s in walker.sigmas if s is not None]
    return tuple(levels) if len(levels) == walker.response.steps else ()


def _measured(walker: Walker, found: Fitted, tried: int) -> dict[str, Any]:
    samples, steps = len(walker.first), walker.response.steps
    entries = walker.first[0].numel()
    rule = extrapolated(walker.response, found.nodes, correct=True)
    whole = []
    for j, change in enumerate(found.weights or ((),) * len(found.nodes)):
        added = np.zeros(len(found.nodes))
        added[j - np.arange(len(change))] += np.array(change)
        whole.append((rule.segment(j)[1] + added)[: j + 1].tolist())
    errors = parts(predictions(walker)[0], found.nodes, steps)
    return {
        "steps": steps,
        "samples": samples,
        "held_out": len(found.errors) if samples > 1 or not found.weights else 0,
        "held_out_db": found.decibels(),
        "predicted": [e / float(np.sqrt(samples * entries)) for e in errors],
        "error": list(found.stages),
        "rule": whole,
        "tried": tried,
    }
