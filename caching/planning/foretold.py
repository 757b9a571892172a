"""How near a schedule should come, told from full runs alone: no step is computed for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .fit import Products, best_change
from .rule import extrapolated
from .schedule import neighbours
from .walk import Walker

LAST = 5
"""Newest outputs that the fit of the last segment may weigh; its end is what counts."""
REMAINS = 0.5
"""Of what outputs answer to states; 0.25 to 1 chose equally well on the shipped models."""
ROUNDS, THROWN = 4, 3
"""Descents from what was found, and how many nodes each throws about before."""


class Part:
    """Some of the calibration samples, to walk apart from the others."""

    def __init__(self, walker: Walker, samples: int) -> None:
        """The first chunks, until there are as many `samples` (or all there are)."""
        self.walker, self.response = walker, walker.response
        counts = (len(walker.rows(range(n))) for n in range(1, walker.chunks + 1))
        enough = (n for n, count in enumerate(counts, 1) if count >= samples)
        self.chunks = range(next(enough, walker.chunks))
        self.samples = len(walker.rows(self.chunks))

    def state(self, index: int) -> Tensor:
        return self.walker.state(index, self.chunks)

    def evaluate(self, index: int, states: Tensor) -> Tensor:
        return self.walker.evaluate(index, states, self.chunks)

    def answers(self, stops: Sequence[tuple[int, Tensor, Tensor]]) -> np.ndarray:
        """(N,) by how much outputs change for a change of the state, between (node, state, output).

        Of root mean squares over all entries.
        """
        ratios = []
        for node, state, output in stops:
            off = float((state - self.state(node)).double().square().mean())
            moved = output - self.walker.output(node, self.chunks)
            ratios.append((float(moved.double().square().mean()) / off) ** 0.5 if off else 0.0)
        return np.interp(range(self.response.steps), [stop[0] for stop in stops], ratios)


class Foretold:
    """Decibels that schedules should come to.

    The whole rule is laid along the true outputs, so that what its segments are off by adds up as
    it does in a run, with its sign; then the last segment is fitted on the other samples. To that
    is added what comes of outputs that answer to the student's own states: independent of one
    another, each as large as its state is off, times what `answers` says, as it enters the end;
    half of that, since the fit takes some of it back.

    Args:
        answers: (N,) by how much outputs change for a change of the state.
        correct: whether a computed step puts right what the forecast before it was off by.
    """

    def __init__(
        self, walker: Walker, answers: np.ndarray | None = None, correct: bool = True
    ) -> None:
        self._correct = correct
        self._response, self._grams = walker.response, np.stack(walker.gram.each)
        self._answers = np.zeros(walker.response.steps) if answers is None else answers
        self._entries = walker.first[0].numel()
        self._known: dict[tuple[int, ...], float] = {}

    def decibels(self, nodes: Sequence[int]) -> float:
        """Mean PSNR on latents (peak 2) over samples left out of the fit."""
        key = tuple(nodes)
        if key not in self._known:
            left = self._left(list(nodes)) / self._entries
            self._known[key] = float(np.mean(10 * np.log10(4 / np.maximum(left, 1e-18))))
        return self._known[key]

    def _left(self, nodes: list[int]) -> np.ndarray:
        """(M,) squared distances from the true last states."""
        rule = extrapolated(self._response, nodes, correct=self._correct)
        weights = np.zeros(len(nodes))
        off = np.zeros((len(nodes), self._response.steps))  # of the states at nodes, in outputs
        for j, node in enumerate(nodes):
            off[j, nodes] = weights
            off[j] -= self._response.outputs[node]
            kept, added = rule.segment(j)
            weights = kept * weights + added
        missing = self._response.outputs[-1].copy()
        missing[nodes] -= weights
        newest = nodes[::-1][:LAST]
        shared = self._grams @ missing
        products = Products(
            self._grams[:, newest][:, :, newest], shared[:, newest], shared @ missing
        )
        found = best_change(products)
        weights[::-1][:LAST] += found.weights
        answered = ((off @ self._grams) * off).sum(-1) @ (weights * self._answers[nodes]) ** 2
        return products.left(found.apart, range(len(self._grams))) + REMAINS * answered

    def descended(self, nodes: tuple[int, ...]) -> tuple[int, ...]:
        """Where shifts of single nodes lead from `nodes`, the best one at a time."""
        while True:
            options = neighbours(nodes, self._response.steps)
            best = max(options, key=self.decibels, default=nodes)
            if self.decibels(best) <= self.decibels(nodes):
                return nodes
            nodes = best

    def shaken(self, nodes: tuple[int, ...], rounds: int = ROUNDS) -> tuple[int, ...]:
        """The best of many descents, each begun by throwing some nodes of the best about.

        Iterated local search, always with the same random numbers: descents end in hollows that
        differ by decibels.
        """
        steps, rng = self._response.steps, np.random.default_rng(0)
        for _ in range(rounds if 1 < len(nodes) < steps else 0):
            free = [i for i in range(1, steps) if i not in nodes]
            kept = list(nodes[1:])
            for _ in range(min(THROWN, len(kept), len(free))):
                kept[rng.integers(len(kept))] = free.pop(rng.integers(len(free)))
            start = (0, *sorted(map(int, kept)))
            if len(set(start)) == len(nodes):
                nodes = max(nodes, self.descended(start), key=self.decibels)
        return nodes
