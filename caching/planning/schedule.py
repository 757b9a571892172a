"""Which steps to compute: exact dynamic programming over the error that skipped ones add."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from accel.caching.forecasters import Weights, newton

GAP = 14
"""Most steps from one computed step to the next."""

Error = Callable[[int | None, int, int], float]
"""(node before or None, node, next node or the end) -> error that the skipped steps add."""


@dataclass(frozen=True)
class Schedule:
    """Computed steps, and the error predicted for them."""

    nodes: tuple[int, ...]
    error: float


def segment_errors(
    gram: np.ndarray,
    coefficients: np.ndarray,
    rule: Weights = newton,
    history: int = 2,
    axis: Sequence[float] | None = None,
) -> Error:
    """The error of a segment, from inner products of true outputs.

    Outputs between the nodes a and b are forecast by `rule` from the last `history` (at most 2)
    nodes; what that is off by, as it enters the last state, is sqrt(d^T G d).

    Args:
        gram: (N, N) inner products of outputs.
        coefficients: (N,) of each output in the last state.
        axis: (N,) where outputs lie for the forecast; their numbers if None.
    """
    places = range(len(coefficients)) if axis is None else axis
    known: dict[tuple[int | None, int, int], float] = {}

    def error(before: int | None, node: int, end: int) -> float:
        key = before, node, end
        if key not in known:
            anchors = [node] if before is None or history < 2 else [node, before]
            used = [*anchors, *range(node + 1, end)]
            off = np.zeros(len(used))
            for position, j in enumerate(range(node + 1, end), start=len(anchors)):
                off[position] += coefficients[j]
                forecast = rule([places[m] for m in anchors], places[j])
                off[: len(anchors)] -= coefficients[j] * np.array(forecast)
            known[key] = float(np.sqrt(max(off @ gram[np.ix_(used, used)] @ off, 0.0)))
        return known[key]

    return error


def fitted_errors(gram: np.ndarray, coefficients: np.ndarray, ridge: float = 1e-6) -> Error:
    """As `segment_errors`, for weights that fit each segment best: what no weights can mend.

    The part of sum_j c_j v_j over the skipped steps that lies outside the span of the last two
    outputs.

    Args:
        gram: (N, N) inner products of outputs.
        coefficients: (N,) of each output in the last state.
        ridge: of the mean diagonal.
    """
    known: dict[tuple[int | None, int, int], float] = {}

    def error(before: int | None, node: int, end: int) -> float:
        key = before, node, end
        if key not in known:
            used = [node] if before is None else [node, before]
            between = list(range(node + 1, end))
            share = coefficients[between]
            own, side = gram[np.ix_(used, used)], gram[np.ix_(used, between)] @ share
            size = own.diagonal().mean()
            weights = np.zeros(len(used))
            if size > 0:
                weights = np.linalg.solve(own + ridge * size * np.eye(len(used)), side)
            left = share @ gram[np.ix_(between, between)] @ share
            left += weights @ own @ weights - 2 * weights @ side
            known[key] = float(np.sqrt(max(left, 0.0)))
        return known[key]

    return error


def parts(error: Error, nodes: Sequence[int], steps: int) -> list[float]:
    """The error of every segment of a schedule."""
    before, after = [None, *nodes[:-1]], [*nodes[1:], steps]
    return [error(b, n, a) for b, n, a in zip(before, nodes, after, strict=True)]


def best_schedules(
    error: Error, steps: int, budget: int, count: int = 1, gap: int = GAP
) -> list[Schedule]:
    """The `count` schedules of `budget` steps with the smallest sum of errors, best first.

    Exact: a state of the search is the last two nodes, which is all that a segment's error depends
    on. The first step is always computed.

    Raises:
        ValueError: no schedule of so few steps leaves gaps of at most `gap`.
    """
    if not 1 <= budget <= steps:
        raise ValueError(f"budget must be from 1 to {steps} steps, got {budget}")
    if budget * gap < steps:
        raise ValueError(
            f"budget must be at least {-(-steps // gap)} of {steps} steps, got {budget}: gaps of "
            f"more than {gap} steps are not planned"
        )
    State = tuple[int | None, int]
    front: dict[State, list[tuple[float, tuple[int, ...]]]] = {(None, 0): [(0.0, (0,))]}
    for made in range(1, budget):
        reached: dict[State, list[tuple[float, tuple[int, ...]]]] = {}
        left = budget - made
        for (before, node), paths in front.items():
            for following in range(node + 1, min(node + gap, steps - left) + 1):
                added = error(before, node, following)
                reached.setdefault((node, following), []).extend(
                    (cost + added, (*nodes, following)) for cost, nodes in paths
                )
        front = {state: heapq.nsmallest(count, paths) for state, paths in reached.items()}
    finished = [
        (cost + error(before, node, steps), nodes)
        for (before, node), paths in front.items()
        if steps - node <= gap
        for cost, nodes in paths
    ]
    return [Schedule(nodes, cost) for cost, nodes in heapq.nsmallest(count, finished)]


def neighbours(nodes: Sequence[int], steps: int, reach: int = 2) -> list[tuple[int, ...]]:
    """Schedules in which one node (not the first) lies up to `reach` steps elsewhere."""
    found = []
    for i in range(1, len(nodes)):
        low, high = nodes[i - 1], nodes[i + 1] if i + 1 < len(nodes) else steps
        for shift in range(-reach, reach + 1):
            moved = nodes[i] + shift
            if shift and low < moved < high:
                found.append((*nodes[:i], moved, *nodes[i + 1 :]))
    return found
