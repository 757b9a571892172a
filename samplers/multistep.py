"""Weights of multistep rules on any grid, in 64-bit numbers that never leave the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def integral(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Weights w with sum w_k f(nodes[k]) = the integral from start to end, for polynomials f.

    Adams-Bashforth where all nodes lie before `end`, Adams-Moulton where one lies on it. Exact up
    to degree len(nodes) - 1.

    Raises:
        ValueError: two nodes are the same.
    """
    if len(set(nodes)) < len(nodes):
        raise ValueError(f"the nodes of a multistep rule must differ, got {list(nodes)}")
    width = end - start
    if width == 0:
        return [0.0] * len(nodes)
    places = (np.array(nodes) - start) / width
    powers = np.vander(places, increasing=True).T
    moments = 1.0 / np.arange(1, len(nodes) + 1)
    return list(map(float, np.linalg.solve(powers, moments) * width))


def derivatives(nodes: Sequence[float], order: int) -> np.ndarray:
    """(order, len(nodes)) weights of the first derivatives at nodes[0], on uneven gaps.

    Those of the polynomial through all nodes: divided differences, exact up to its degree.
    """
    offsets = np.array(nodes) - nodes[0]
    scale = np.abs(offsets).max()
    powers = np.vander(offsets / scale, increasing=True)
    coefficients = np.linalg.inv(powers)
    factor, found = 1.0, []
    for k in range(1, order + 1):
        factor *= k / scale
        found.append(coefficients[k] * factor)
    return np.array(found)
