"""The search for a plan: schedules walked within a limit of cost, and what was found."""

from __future__ import annotations

from collections.abc import Callable

from .apart import fit_apart, splits
from .foretold import Foretold, Part
from .planner import HISTORY, Fitted, Known, candidates, fit, predictions
from .schedule import best_schedules, neighbours
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
        most: denoising steps that may be computed in the end, in steps of one sample.
        ceiling: of them, how many may be by now: at first those of effort "normal".
        correct: whether a computed step puts right what the forecast before it was off by.
        taught: whether a few samples told by how much outputs answer to states.
    """

    def __init__(
        self,
        walker: Walker,
        effort: str = "normal",
        history: int = HISTORY,
        progress: Callable[[float], None] = lambda share: None,
        correct: bool = True,
    ) -> None:
        self.walker, self.history, self.progress = walker, history, progress
        self.correct, self.samples = correct, len(walker.first)
        self.foretold = Foretold(walker, correct=correct)
        self.most = CEILING[effort] * self.samples * walker.response.steps
        self.ceiling = min(self.most, CEILING["normal"] * self.samples * walker.response.steps)
        self.taught = False
        self.tried: dict[tuple[int, ...], Fitted] = {}
        self.known: Known = {}
        self.best: Fitted | None = None
        self.split: tuple[Fitted, tuple[int, ...]] | None = None
        self.along = False
        self.kinds: tuple[float, float] | None = None

    def affordable(self, nodes: tuple[int, ...]) -> bool:
        """Whether walking `nodes` stays below the ceiling; the first output is known."""
        new = sum(nodes[: j + 1] not in self.known for j in range(1, len(nodes)))
        return self.payable(new * self.samples)

    def payable(self, evaluations: int) -> bool:
        """Whether so many more, each of one sample, stay below the ceiling."""
        return self.walker.evaluations + evaluations <= self.ceiling

    def measure(self, nodes: tuple[int, ...]) -> Fitted:
        """Walk a schedule."""
        one = self._fit(self.walker, nodes, self.along, self.known)
        self.tried[nodes] = one
        if self.best is None or one.decibels() > self.best.decibels():
            self.best = one
        kept = {self.best.nodes[: j + 1] for j in range(len(nodes))}
        self.known = {n: stop for n, stop in self.known.items() if n in kept}
        self.progress(min(self.walker.evaluations / self.most, 1.0))
        return self.best

    def predicted(self, budget: int) -> Fitted:
        """The best of the schedules foretold to be, as many as are affordable.

        Once more with a higher ceiling, it goes on from what was found.
        """
        self.probed(budget)
        for nodes in candidates(self.walker, budget, self.foretold):
            if self.best is None or (nodes not in self.tried and self.affordable(nodes)):
                self.measure(nodes)
            self.judged()
        assert self.best is not None
        return self.best

    def _fit(
        self, walker: Walker | Part, nodes: tuple[int, ...], along: bool, known: Known
    ) -> Fitted:
        return fit(
            walker, nodes, history=self.history, correct=self.correct, along=along, known=known
        )

    def probed(self, budget: int) -> None:
        """Learn from a few samples by how much outputs answer to states, if affordable.

        They walk the schedule that the exact search predicts best.
        """
        part, steps = Part(self.walker, PROBED), self.walker.response.steps
        cost = (budget - 1) * (part.samples + self.samples)
        if not self.taught and 1 < budget < steps and self.payable(cost):
            self.taught = True
            nodes = best_schedules(predictions(self.walker)[0], steps, budget)[0].nodes
            known = Known()
            self._fit(part, nodes, False, known)
            stops = [(s[-1], stop.state, stop.output) for s, stop in known.items() if len(s) > 1]
            self.foretold = Foretold(self.walker, part.answers(stops), self.correct)

    def judged(self) -> Fitted:
        """The best, or its schedule fitted in every segment, if affordable, where that ends nearer.

        A segment's fit looks no further than its end, only the whole run tells. What is nearer is
        tried from then on.
        """
        assert self.best is not None
        best, known = self.best, Known()
        cost = (len(best.nodes) - 1) * self.samples
        if self.kinds is None and self.payable(cost):
            every = self._fit(self.walker, best.nodes, True, known)
            self.kinds = best.decibels(), every.decibels()
            if self.kinds[1] > self.kinds[0]:
                self.along, self.best, self.known = True, every, known
                self.tried[best.nodes] = every
        return self.best

    def apart(self, budget: int) -> None:
        """Plans of the branches of guidance apart, for the same work."""
        for nodes, guidance in splits(self.walker, budget):
            if not self.payable((budget + 1) * self.samples):
                return
            one = fit_apart(self.walker, nodes, guidance, self.history, self.along, self.correct)
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
    correct: bool = True,
) -> Search:
    """A plan of `budget` computed steps within the cost that `effort` allows.

    The schedules foretold best are walked, as many as the cost allows. Each is measured on samples
    left out of its fit. The first tells whether every segment is fitted, or the last alone. Effort
    "high" goes on from all that "normal" does, so that it ends no farther off, with more of them
    and with shifts of single nodes.
    """
    found = Search(walker, effort, history, progress, correct)
    found.predicted(budget)
    if found.ceiling < found.most:
        found.ceiling = found.most
        found.predicted(budget)
        found.apart(budget)
        found.moved()
    return found
