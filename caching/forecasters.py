"""Forecasters: what stands in for an output that is not computed.

Every one is a rule for the weights of a linear combination of the last computed outputs, so a
skipped step costs one combination and a computed step nothing but keeping its output.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

Weights = Callable[[Sequence[float], float], list[float]]
"""(indices of computed steps, newest first; index wanted) -> one weight for each, summing to 1."""


def hold(anchors: Sequence[float], index: float) -> list[float]:
    """The newest output, unchanged."""
    return [1.0] + [0.0] * (len(anchors) - 1)


def newton(anchors: Sequence[float], index: float) -> list[float]:
    """The polynomial through all anchors (Newton's backward form): exact to its degree."""
    weights = []
    for i, own in enumerate(anchors):
        weight = 1.0
        for j, other in enumerate(anchors):
            if i != j:
                weight *= (index - other) / (own - other)
        weights.append(weight)
    return weights


def taylor(anchors: Sequence[float], index: float) -> list[float]:
    """TaylorSeer as released (2503.06923): backward differences used as derivatives.

    D_0 = F and D_{i+1} = (D_i - D_i of the anchor before) / gap; the forecast at offset x is
    sum_i D_i x^i / i!. Exact for constant and linear outputs only; above that it
    under-extrapolates.
    """
    offset = index - anchors[0]
    return _expand(anchors, [offset**i / math.factorial(i) for i in range(len(anchors))])


def hermite(scale: float) -> Weights:
    """HiCache (2508.16984): as `taylor`, with sigma^i H_i(sigma x) in place of x^i.

    H_i are the physicists' Hermite polynomials, H_{i+1}(y) = 2 y H_i(y) - 2 i H_{i-1}(y). At order
    1 the slope is 2 sigma^2 of Taylor's, so a line is met only at sigma = sqrt(1/2).

    Args:
        scale: sigma.
    """

    def weights(anchors: Sequence[float], index: float) -> list[float]:
        y = scale * (index - anchors[0])
        terms, before, current = [], 0.0, 1.0
        for i in range(len(anchors)):
            terms.append(scale**i * current / math.factorial(i))
            before, current = current, 2 * y * current - 2 * i * before
        return _expand(anchors, terms)

    return weights


def _expand(anchors: Sequence[float], terms: Sequence[float]) -> list[float]:
    """Weights of sum_i terms_i D_i, for the backward differences D_i at the newest anchor."""
    count = len(anchors)
    # differences[k] holds D_i at anchor k, as weights of the anchors
    differences = [[float(k == j) for j in range(count)] for k in range(count)]
    weights = [0.0] * count
    for term in terms:
        weights = [w + term * d for w, d in zip(weights, differences[0], strict=True)]
        differences = [
            [(new - old) / (anchors[k] - anchors[k + 1]) for new, old in zip(a, b, strict=True)]
            for k, (a, b) in enumerate(itertools.pairwise(differences))
        ]
    return weights
