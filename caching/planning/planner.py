"""From recorded runs to a plan: schedules predicted, weights fitted, the best measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .fit import fitted_change
from .rule import Rule, extrapolated
from .schedule import Schedule, best_schedules, neighbours, segment_errors
from .walk import Walker

HISTORY = 3
"""Newest outputs that a fit may weigh."""


@dataclass(frozen=True)
class Fitted:
    """A schedule with its weights, and how near it came.

    Attributes:
        weights: of every node, what the fit adds to the newest outputs, newest first.
        errors: (M,) root mean square distance of every sample's last state from the true one.
    """

    nodes: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    errors: np.ndarray

    def decibels(self, rows: Sequence[int], peak: float = 2.0) -> float:
        """Mean PSNR in latent space over some samples."""
        return float(np.mean(20 * np.log10(peak / np.maximum(self.errors[list(rows)], 1e-9))))


def fit(
    walker: Walker,
    nodes: Sequence[int],
    rows: Sequence[int],
    history: int = HISTORY,
    correct: bool = True,
    fitted: bool = True,
) -> Fitted:
    """Walk the nodes once on the student's own path, fitting each segment on the samples `rows`."""
    rule: Rule = extrapolated(walker.response, nodes, correct=correct)
    state, outputs, weights = walker.state(0), [], []
    chosen = list(rows)
    for j, node in enumerate(nodes):
        outputs.append(walker.evaluate(node, state))
        end = nodes[j + 1] if j + 1 < len(nodes) else walker.response.steps
        kept, prior = rule.segment(j)
        reached = kept * state
        for weight, output in zip(prior, outputs, strict=False):
            reached = reached.add(output, alpha=float(weight))
        change = np.zeros(0)
        if fitted:
            newest = outputs[::-1][:history]
            target = walker.state(end)
            change = fitted_change(reached[chosen], [o[chosen] for o in newest], target[chosen])
            for weight, output in zip(change, newest, strict=True):
                reached = reached.add(output, alpha=float(weight))
        weights.append(tuple(float(c) for c in change))
        state = reached
    return Fitted(tuple(nodes), tuple(weights) if fitted else (), _errors(state, walker))


def _errors(state: Tensor, walker: Walker) -> np.ndarray:
    off = (state - walker.state(walker.response.steps)).flatten(1)
    return off.double().square().mean(1).sqrt().numpy()


def candidates(walker: Walker, budget: int, count: int = 3) -> list[Schedule]:
    """Schedules predicted best, with forecasts in steps and in noise levels."""
    final = walker.response.outputs[-1]
    axes: list[Sequence[float] | None] = [None]
    if all(s is not None and np.isfinite(s) for s in walker.sigmas):
        axes.append([float(s) for s in walker.sigmas if s is not None])
    found: dict[tuple[int, ...], Schedule] = {}
    for axis in axes:
        error = segment_errors(walker.gram.matrix, final, axis=axis)
        for one in best_schedules(error, walker.response.steps, budget, count):
            found.setdefault(one.nodes, one)
    return list(found.values())


def search(
    walker: Walker,
    budget: int,
    moves: int = 0,
    history: int = HISTORY,
    progress: Callable[[], None] = lambda: None,
) -> Fitted:
    """A plan of `budget` computed steps.

    Without moves: the schedule predicted best, fitted once on all samples. With moves: the
    schedules predicted best, and `moves` shifts of single nodes from there, each fitted on half of
    the samples and measured on the other half; the best of them is refitted on all.
    """
    samples, schedules = len(walker.first), candidates(walker, budget)
    if not moves or samples < 2:
        return fit(walker, schedules[0].nodes, range(samples), history)
    fitting, held = list(range(0, samples, 2)), list(range(1, samples, 2))
    tried: dict[tuple[int, ...], Fitted] = {}

    def measure(nodes: tuple[int, ...]) -> float:
        if nodes not in tried:
            tried[nodes] = fit(walker, nodes, fitting, history)
            progress()
        return tried[nodes].decibels(held)

    best = max((c.nodes for c in schedules), key=measure)
    rng = np.random.default_rng(0)
    for _ in range(moves):
        options = [n for n in neighbours(best, walker.response.steps) if n not in tried]
        if not options:
            break
        one = options[int(rng.integers(len(options)))]
        if measure(one) > measure(best):
            best = one
    return fit(walker, best, range(samples), history)
