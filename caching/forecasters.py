"""Forecasters: what stands in for an output that is not computed.

Every one is a rule for the weights of a linear combination of the last computed outputs, so a
skipped step costs one combination and a computed step nothing but keeping its output.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

Weights = Callable[[Sequence[int], int], list[float]]
"""(indices of computed steps, newest first; index wanted) -> one weight for each, summing to 1."""


def hold(anchors: Sequence[int], index: int) -> list[float]:
    """The newest output, unchanged."""
    return [1.0] + [0.0] * (len(anchors) - 1)


def newton(anchors: Sequence[int], index: int) -> list[float]:
    """The polynomial through all anchors (Newton's backward form): exact to its degree."""
    weights = []
    for i, own in enumerate(anchors):
        weight = 1.0
        for j, other in enumerate(anchors):
            if i != j:
                weight *= (index - other) / (own - other)
        weights.append(weight)
    return weights


def taylor(anchors: Sequence[int], index: int) -> list[float]:
    """TaylorSeer as released (2503.06923): backward differences used as derivatives.

    D_0 = F and D_{i+1} = (D_i - D_i of the anchor before) / gap; the forecast at offset x is
    sum_i D_i x^i / i!. Exact for constant and linear outputs only; above that it
    under-extrapolates.
    """
    count = len(anchors)
    # differences[k] holds D_i at anchor k, as weights of the anchors
    differences = [[float(k == j) for j in range(count)] for k in range(count)]
    weights, factor, offset = [0.0] * count, 1.0, index - anchors[0]
    for order in range(count):
        weights = [w + factor * d for w, d in zip(weights, differences[0], strict=True)]
        factor *= offset / (order + 1)
        differences = [
            [(new - old) / (anchors[k] - anchors[k + 1]) for new, old in zip(a, b, strict=True)]
            for k, (a, b) in enumerate(itertools.pairwise(differences))
        ]
    return weights
