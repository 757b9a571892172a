"""Plans of the branches of guidance apart: the conditional one at more nodes than the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .branches import Differences
from .planner import HISTORY, Fitted, fit, predictions
from .rule import extrapolated
from .schedule import best_schedules, segment_errors
from .walk import Walker

SHIFTS = (1 / 8, 1 / 4)
"""Of the budget: nodes more for the conditional branch, and less for the other."""


class Apart:
    """Evaluates both branches at some nodes, and the conditional one alone at the others."""

    def __init__(self, walker: Walker, guidance: tuple[int, ...]) -> None:
        self.walker, self.guidance = walker, guidance
        self._kept = [Differences() for _ in range(walker.chunks)]

    def evaluate(self, node: int, states: Tensor) -> Tensor:
        """Guided outputs (M, …) of step `node`; nodes must come in their order."""
        found = []
        for (chunk, part), kept in zip(self.walker.parts(states), self._kept, strict=True):
            guess = None if node in self.guidance else kept.guess(node)
            output, differences = self.walker.probed(node, part, chunk, guess)
            if guess is None:
                kept.keep(node, differences)
            found.append(output)
        return torch.cat(found)


def splits(walker: Walker, budget: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Nodes, and those that evaluate both branches, for the work of `budget` whole steps.

    The second are those that an exact search predicts best among the first, from inner products of
    the difference of the branches, each node's counting as its output does in the last state.
    """
    if walker.guidance is None:
        return []
    gram, steps = walker.guidance.sum(0), walker.response.steps
    found = []
    for shift in dict.fromkeys(max(1, round(s * budget)) for s in SHIFTS):
        if budget + shift >= steps or budget - shift < 2:
            continue
        nodes = best_schedules(predictions(walker)[0], steps, budget + shift)[0].nodes
        own, shares = gram[np.ix_(nodes, nodes)], _shares(walker, nodes)
        error = segment_errors(own, shares, axis=nodes)
        chosen = best_schedules(error, len(nodes), budget - shift)[0].nodes
        found.append((nodes, tuple(nodes[i] for i in chosen)))
    return found


def _shares(walker: Walker, nodes: tuple[int, ...]) -> np.ndarray:
    """(len(nodes),) what each node's output counts for in the last state."""
    rule = extrapolated(walker.response, nodes, correct=True)
    total = np.zeros(len(nodes))
    for j in range(len(nodes)):
        kept, weights = rule.segment(j)
        total = kept * total + weights
    return total


def fit_apart(
    walker: Walker,
    nodes: tuple[int, ...],
    guidance: tuple[int, ...],
    history: int = HISTORY,
    along: bool = True,
    correct: bool = True,
) -> Fitted:
    """As `fit`, with both branches evaluated at the nodes `guidance` only."""
    evaluate = Apart(walker, guidance).evaluate
    return fit(walker, nodes, history=history, correct=correct, along=along, evaluate=evaluate)
