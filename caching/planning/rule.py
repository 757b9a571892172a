"""The linear rule of a plan: every state from the one before and the outputs at computed steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accel.caching.forecasters import Weights, newton

from .response import Response


@dataclass(frozen=True)
class Rule:
    """x_{i+1} = decay[i] x_i + sum_m weights[i, m] v_m over the computed steps m <= i.

    Attributes:
        nodes: computed steps.
        decay: (N,).
        weights: (N, len(nodes)); zero for nodes after i.
    """

    nodes: tuple[int, ...]
    decay: np.ndarray
    weights: np.ndarray

    def segment(self, j: int) -> tuple[float, np.ndarray]:
        """From node j to the next (or the end): what the state counts for, and each output."""
        end = self.nodes[j + 1] if j + 1 < len(self.nodes) else len(self.decay)
        kept, weights = 1.0, np.zeros(len(self.nodes))
        for i in range(self.nodes[j], end):
            kept, weights = kept * self.decay[i], weights * self.decay[i] + self.weights[i]
        return kept, weights

    def adjusted(self, j: int, change: np.ndarray) -> Rule:
        """The rule whose segment from node j ends `change` (len(nodes),) further in each output.

        All of it is added on the segment's last step, so that the states before stay forecasts.
        """
        end = self.nodes[j + 1] if j + 1 < len(self.nodes) else len(self.decay)
        weights = self.weights.copy()
        weights[end - 1] += change
        return Rule(self.nodes, self.decay, weights)


def extrapolated(
    response: Response,
    nodes: Sequence[int],
    forecast: Weights = newton,
    history: int = 2,
    correct: bool = False,
    axis: Sequence[float] | None = None,
) -> Rule:
    """The rule that `response` gives with every skipped output made from those at nodes.

    Outputs not yet passed are forecast from the last `history` nodes. With `correct`, outputs
    between two nodes are interpolated once the later is known, and the state is put right for what
    the forecast was off by.

    Args:
        axis: (N,) where outputs lie for the forecast; their numbers if None.
    """
    steps, count = response.steps, len(nodes)
    places = range(steps) if axis is None else axis
    decay = np.array([response.decay(i) for i in range(steps)])
    weights = np.zeros((steps, count))
    assumed = np.zeros((steps, count))  # each output as it was made of nodes when last used
    for j, node in enumerate(nodes):
        end = nodes[j + 1] if j + 1 < count else steps
        last = list(range(j, max(j - history, -1), -1))
        anchors = [places[nodes[m]] for m in last]
        if correct and j:
            before = assumed.copy()
            for i in range(nodes[j - 1] + 1, node):
                gap = places[node] - places[nodes[j - 1]]
                share = (places[i] - places[nodes[j - 1]]) / gap
                assumed[i] = 0.0
                assumed[i, j - 1], assumed[i, j] = 1 - share, share
            weights[node] += decay[node] * (response.outputs[node] @ (assumed - before))
        for i in range(node, end):
            assumed[i, last] = forecast(anchors, places[i])
        for i in range(node, end):
            weights[i] += response.increments(i) @ assumed
    return Rule(tuple(nodes), decay, weights)
