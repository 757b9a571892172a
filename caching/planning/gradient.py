"""Gradient fitting: all weights of a plan at once, by descent through the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .planner import HISTORY, Fitted, distance, fit
from .rule import extrapolated
from .surprise import surprises
from .walk import Walker

Loss = Callable[[Tensor, Tensor], Tensor]
"""(last states (m, …), true ones) -> (m,), differentiable; what is made small."""
ROUNDS = 12
PATIENCE = 3
"""Rounds without a gain on held-out chunks after which the descent is given up."""
PACE = 0.05
"""Of the error there is at first, how far the first round moves each coordinate."""
MOMENTUM = 0.6
TRIES = 4
"""Lengths of a move, each a quarter of the one before, after which the loss is at its lowest."""
PARALLEL = 1e-4
"""Of the mean diagonal: added to inner products of outputs that are nearly parallel."""


def latent(state: Tensor, true: Tensor) -> Tensor:
    """Logarithm of the mean square distance, so that every sample's decibels count alike."""
    return (state - true).flatten(1).square().mean(1).clamp_min(1e-18).log()


@dataclass(frozen=True)
class Course:
    """Samples taken along a plan: the states at its nodes and at the end, and the outputs."""

    states: list[Tensor]
    outputs: list[Tensor]


class Descent:
    """The weights of one schedule, moved against the gradient of a loss at the last state.

    The sampler is walked forward without a graph; backward, each node is evaluated once more from
    its stored state (checkpointing), so that one evaluation's graph is kept at a time. Weights are
    moved in coordinates in which a unit changes the state at the segment's end by one (root mean
    square), with momentum, and no farther than the loss falls.
    """

    def __init__(
        self, walker: Walker, start: Fitted, loss: Loss = latent, correct: bool = True
    ) -> None:
        self.walker, self.nodes, self.loss = walker, start.nodes, loss
        self._rule = extrapolated(walker.response, start.nodes, correct=correct)
        self.changes = [
            np.array(change or (0.0,) * min(j + 1, HISTORY))
            for j, change in enumerate(start.weights)
        ]
        self._scales: list[np.ndarray] = []

    def course(self, chunks: Sequence[int]) -> Course:
        """Walk the nodes with the weights as they are."""
        rows = self.walker.rows(chunks)
        states, outputs = [self.walker.state(0)[rows]], []
        for j, node in enumerate(self.nodes):
            outputs.append(self.walker.evaluate(node, states[-1], chunks))
            kept, weights = self._segment(j)
            state = kept * states[-1]
            for weight, output in zip(weights, outputs, strict=False):
                state = state.add(output, alpha=float(weight))
            states.append(state)
        return Course(states, outputs)

    def losses(self, course: Course, chunks: Sequence[int]) -> Tensor:
        """(m,) of the last states."""
        return self.loss(course.states[-1], self._true(chunks))

    def gradient(self, course: Course, chunks: Sequence[int]) -> list[np.ndarray]:
        """Of the mean loss, for the weights of every node."""
        last = course.states[-1].detach().requires_grad_()
        with torch.enable_grad():
            loss = self.loss(last, self._true(chunks)).mean()
        pull = torch.autograd.grad(loss, last)[0]
        pulls: list[Tensor | float] = [0.0] * len(self.nodes)
        found = []
        for j in reversed(range(len(self.nodes))):
            kept, weights = self._segment(j)
            newest = range(j, j - len(self.changes[j]), -1)
            found.append(np.array([float((pull * course.outputs[m]).sum()) for m in newest]))
            for m in range(j + 1):
                if weights[m]:
                    pulls[m] = pulls[m] + float(weights[m]) * pull
            pull = kept * pull
            if j:
                here = pulls[j]
                assert isinstance(here, Tensor)
                pull = pull + self.walker.pulled(self.nodes[j], course.states[j], here, chunks)
        return found[::-1]

    def run(
        self, chunks: Sequence[int], rounds: int, watch: Callable[[int], bool] = lambda done: True
    ) -> None:
        """Move the weights up to `rounds` times, so that every time the loss of some chunks falls.

        A move after which it does not is taken back, and a quarter of it tried, without momentum.

        Args:
            watch: told after each move how many there were; whether to go on.
        """
        course = self.course(chunks)
        self._scales = [self._scale(j, course) for j in range(len(self.nodes))]
        loss = float(self.losses(course, chunks).mean())
        rate = PACE * float((course.states[-1] - self._true(chunks)).square().mean().sqrt())
        drift = [np.zeros(len(change)) for change in self.changes]
        for done in range(1, rounds + 1):
            slopes = self.gradient(course, chunks)
            slopes = [scale.T @ slope for scale, slope in zip(self._scales, slopes, strict=True)]
            drift = [MOMENTUM * old + new for old, new in zip(drift, slopes, strict=True)]
            before = self.changes
            for _ in range(TRIES):
                self._move(before, drift, rate)
                course = self.course(chunks)
                now = float(self.losses(course, chunks).mean())
                if now < loss:
                    break
                drift, rate = slopes, rate / 4
            else:
                self.changes = before
                return
            loss, rate = now, 1.25 * rate
            if not watch(done):
                return

    def _move(self, start: list[np.ndarray], drift: list[np.ndarray], rate: float) -> None:
        """From `start`, by `rate` in each coordinate (root mean square), against `drift`."""
        size = float(np.sqrt(np.mean(np.concatenate(drift) ** 2))) + 1e-30
        moves = zip(start, self._scales, drift, strict=True)
        self.changes = [change - rate / size * scale @ one for change, scale, one in moves]

    def _scale(self, j: int, course: Course) -> np.ndarray:
        """From coordinates in which a unit moves the state by one to weights."""
        size = len(self.changes[j])
        columns = torch.stack([course.outputs[j - m].flatten().double() for m in range(size)])
        gram = (columns @ columns.T / max(columns.shape[1], 1)).numpy()
        mean = gram.diagonal().mean() if size else 0.0
        if mean == 0:
            return np.zeros((size, size))
        return np.linalg.inv(np.linalg.cholesky(gram + PARALLEL * mean * np.eye(size))).T

    def _segment(self, j: int) -> tuple[float, np.ndarray]:
        kept, weights = self._rule.segment(j)
        weights = weights.copy()
        weights[j - np.arange(len(self.changes[j]))] += self.changes[j]
        return kept, weights

    def _true(self, chunks: Sequence[int]) -> Tensor:
        return self.walker.state(self.walker.response.steps)[self.walker.rows(chunks)]


def refined(
    walker: Walker,
    start: Fitted,
    loss: Loss = latent,
    rounds: int = ROUNDS,
    progress: Callable[[float], None] = lambda share: None,
    correct: bool = True,
) -> tuple[Fitted, dict[str, float]]:
    """The plan with its weights moved by descent, and what that gained on held-out chunks.

    Half of the chunks are fitted in closed form and descended on, until the other half has come no
    nearer for `PATIENCE` rounds. The weights that ended nearest there are taken if they end nearer
    than `start`, which may have been fitted on that half too, by more than the standard error of
    that; else, or where there is one chunk only, or no step is skipped, the plan stays as it is.
    The gain is by how much the loss is lower than that of `start`, in decibels if it is the latent
    one.
    """
    chunks = range(walker.chunks)
    fitting, held = list(chunks[::2]), list(chunks[1::2])
    if not held or not start.weights or len(start.nodes) == walker.response.steps:
        return start, {"gradient_rounds": 0, "gradient_gain": 0.0}
    along = any(start.weights[:-1])
    closed = fit(walker, start.nodes, walker.rows(fitting), correct=correct, along=along)
    trial = Descent(walker, closed, loss, correct)
    losses: list[float] = []
    best: list[tuple[list[np.ndarray], Course, Tensor]] = []

    def watch(done: int) -> bool:
        course = trial.course(held)
        each = trial.losses(course, held)
        losses.append(float(each.mean()))
        if losses[-1] == min(losses):
            best[:] = [(trial.changes, course, each)]
        progress(done / rounds)
        return done - int(np.argmin(losses)) < PATIENCE

    watch(0)
    trial.run(fitting, rounds, watch)
    plain, stop = Descent(walker, start, loss, correct), int(np.argmin(losses))
    trial.changes, course, each = best[0]
    gains = (plain.losses(plain.course(held), held) - each).double()
    error = float(gains.std() / len(gains) ** 0.5) if len(gains) > 1 else 0.0
    if not stop or float(gains.mean()) <= error:
        return start, {"gradient_rounds": 0, "gradient_gain": 0.0}
    rows = walker.rows(held)
    outputs = trial.course(chunks).outputs
    ends = [*start.nodes[1:], walker.response.steps]
    off = [
        distance(state, walker.state(end)[rows])
        for end, state in zip(ends, course.states[1:], strict=True)
    ]
    found = Fitted(
        start.nodes,
        tuple(tuple(float(c) for c in change) for change in trial.changes),
        off[-1].sqrt().numpy(),
        tuple(float(one.mean() ** 0.5) for one in off),
        surprises(start.nodes, outputs).double().numpy(),
    )
    decibels = float(10 / np.log(10)) if loss is latent else 1.0
    return found, {"gradient_rounds": stop, "gradient_gain": float(gains.mean()) * decibels}
