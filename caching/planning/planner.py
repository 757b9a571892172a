"""From recorded runs to a plan: schedules predicted, weights fitted, the best measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .fit import fitted_change
from .foretold import LAST, Foretold, Part
from .rule import Rule, extrapolated
from .schedule import Error, best_schedules, fitted_errors, segment_errors
from .surprise import surprises
from .walk import Walker

HISTORY = 3
"""Newest outputs that the fit of a segment may weigh; a correction reaches as far."""


@dataclass(frozen=True)
class Fitted:
    """A schedule with its weights, and how near it came.

    Every sample went its own way with weights that were fitted on the others, so that what is
    measured is what samples not calibrated on can expect.

    Attributes:
        weights: of every node, what the fit adds to the newest outputs, newest first.
        errors: (M,) root mean square distance of every sample's last state from the true one.
        stages: of every node, the same where its segment ends, over all samples.
        surprises: (len(nodes), M) how far the output at a node was from its forecast, as a share of
            it.
    """

    nodes: tuple[int, ...]
    weights: tuple[tuple[float, ...], ...]
    errors: np.ndarray
    stages: tuple[float, ...] = ()
    surprises: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def decibels(self, rows: Sequence[int] | None = None, peak: float = 2.0) -> float:
        """Mean PSNR in latent space over some samples, or all."""
        errors = self.errors if rows is None else self.errors[list(rows)]
        return float(np.mean(20 * np.log10(peak / np.maximum(errors, 1e-9))))


@dataclass(frozen=True)
class Stop:
    """The samples at a node: their states, the outputs there, and the weights that led here."""

    state: Tensor
    output: Tensor
    weights: tuple[float, ...]
    error: float


Known = dict[tuple[int, ...], Stop]
"""Stops by the nodes up to theirs: schedules that begin alike are walked once as far as that."""


def fit(
    walker: Walker | Part,
    nodes: Sequence[int],
    rows: Sequence[int] | None = None,
    history: int = HISTORY,
    correct: bool = True,
    fitted: bool = True,
    along: bool = True,
    known: Known | None = None,
    evaluate: Callable[[int, Tensor], Tensor] | None = None,
) -> Fitted:
    """Walk the nodes once on the student's own path, fitting each segment on the samples `rows`.

    With `fitted`, a segment's weights are the better of the plain and the corrected extrapolation,
    or are fitted from there; without, those of the extrapolation (with `correct`, corrected). A
    segment that ends nearer need not lead nearer to the last state: the extrapolation's errors
    partly cancel with those of its correction. Without `along` only the last segment is fitted,
    whose end is the last state; it takes back what all before were off by.
    """
    steps, rules = walker.response.steps, _priors(walker, nodes, correct, fitted)
    known = {} if known is None else known
    evaluate = walker.evaluate if evaluate is None else evaluate
    state, outputs, weights, stages = walker.state(0), [], [], []
    change: tuple[float, ...] = ()
    error = 0.0
    for j, node in enumerate(nodes):
        here = tuple(nodes[: j + 1])
        if here not in known:
            known[here] = Stop(state, evaluate(node, state), change, error)
        state = known[here].state
        outputs.append(known[here].output)
        following = tuple(nodes[: j + 2])
        if j + 1 < len(nodes) and following in known:
            weights.append(known[following].weights)
            stages.append(known[following].error)
            continue
        end = nodes[j + 1] if j + 1 < len(nodes) else steps
        target = walker.state(end)
        kept, prior = rules[0].segment(j)
        reached = kept * state
        for weight, output in zip(prior, outputs, strict=False):
            reached = reached.add(output, alpha=float(weight))
        change = ()
        if fitted and (along or end == steps):
            reach = max(history, LAST) if end == steps else history
            newest = outputs[::-1][:reach]
            others = [(rule.segment(j)[1] - prior)[j::-1][:reach] for rule in rules]
            found = fitted_change(reached, newest, target, rows, others)
            apart = torch.from_numpy(found.apart.T.copy()).to(state)
            for column, output in zip(apart, newest, strict=True):
                reached = reached + column.reshape(-1, *[1] * (output.ndim - 1)) * output
            change = tuple(float(c) for c in found.weights)
        state, error = reached, float(distance(reached, target).mean() ** 0.5)
        weights.append(change)
        stages.append(error)
    errors = distance(state, walker.state(steps)).sqrt().numpy()
    return Fitted(
        tuple(nodes),
        tuple(weights) if fitted else (),
        errors,
        tuple(stages),
        surprises(nodes, outputs).double().numpy(),
    )


def _priors(walker: Walker | Part, nodes: Sequence[int], correct: bool, fitted: bool) -> list[Rule]:
    kinds = (correct, not correct) if fitted else (correct,)
    return [extrapolated(walker.response, nodes, correct=kind) for kind in kinds]


def distance(state: Tensor, true: Tensor) -> Tensor:
    """(M,) mean square distance."""
    return (state - true).flatten(1).double().square().mean(1)


def candidates(walker: Walker, budget: int, foretold: Foretold) -> list[tuple[int, ...]]:
    """Schedules worth walking, those foretold to come nearest first.

    From the exact search's best by every prediction, and from even steps, shifts of single nodes
    lead on; where they began comes after all of those.
    """
    steps = walker.response.steps
    found = [best_schedules(e, steps, budget, 2) for e in predictions(walker)]
    starts = [one.nodes for rank in zip(*found, strict=False) for one in rank]
    starts.append(tuple(i * steps // budget for i in range(budget)))
    ends = sorted({foretold.descended(s) for s in starts}, key=foretold.decibels, reverse=True)
    ends = list(dict.fromkeys([foretold.shaken(ends[0]), *ends]))
    return list(dict.fromkeys([*ends, *sorted(starts, key=foretold.decibels, reverse=True)]))


def predictions(walker: Walker) -> list[Error]:
    """For forecasts in steps, for fitted weights, and for forecasts in noise levels."""
    gram, final = walker.gram.matrix, walker.response.outputs[-1]
    found = [segment_errors(gram, final), fitted_errors(gram, final)]
    axis = [float(s) for s in walker.sigmas if s is not None and np.isfinite(s)]
    if len(axis) == walker.response.steps and (np.diff(axis) < 0).all():
        found.append(segment_errors(gram, final, axis=axis))
    return found
