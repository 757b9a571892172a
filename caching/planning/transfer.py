"""A plan moved to other noise levels: another number of steps, another scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIKE = 1e-3
"""Levels count as the same while they differ by no more than this, relatively."""
STRETCH = 2.0
"""Most that a segment may be longer or shorter for its fitted weights to be kept."""

Levels = Sequence[float | None]
Weights = tuple[tuple[float, ...], ...]


def moved(
    nodes: Sequence[int], weights: Weights, own: Levels, levels: Levels, steps: int
) -> tuple[tuple[int, ...], Weights]:
    """Nodes and fitted weights of a plan, in a run at other noise levels.

    A node goes to the step nearest to it in noise level, two never to the same one. What a fit
    added is proportional to the length of its segment in noise level, so it is scaled by the ratio
    of the new length to the old; where that is beyond `STRETCH` nothing is added.

    Args:
        nodes: computed steps of `steps`, rising, the first 0.
        weights: of every node, what the fit adds to the newest outputs; or empty.
        own: (steps,) noise levels the plan was made at, falling; empty if they are not known,
            which leaves the share of the run.
        levels: (total,) noise levels of the run.

    Returns:
        Nodes, no more than `total`, and weights of each; no weights where every step is computed.
    """
    total = len(levels)
    before, after = _known(own), _known(levels)
    if before is None or after is None or len(before) != steps:
        before, after = 1 - np.arange(steps) / steps, 1 - np.arange(total) / total
    elif total == steps and np.allclose(before, after, rtol=ALIKE, atol=0):
        return tuple(nodes), weights
    kept = list(range(min(len(nodes), total)))
    if len(kept) == total:
        return tuple(kept), ()
    # levels fall, and np.interp wants what it looks up in to rise
    places = np.interp(-before[list(nodes)], -after, np.arange(total))
    found = [0]
    for j in kept[1:]:
        nearest = max(round(float(places[j])), found[-1] + 1)
        found.append(min(nearest, total - len(kept) + j))
    if len(weights) != len(nodes):
        return tuple(found), ()
    ratios = _lengths(found, after) / _lengths(nodes, before)
    ratios[(ratios > STRETCH) | (ratios < 1 / STRETCH)] = 0.0
    changed = zip(ratios, weights, strict=True)
    return tuple(found), tuple(tuple(float(r) * w for w in row) for r, row in changed)


def _known(levels: Levels) -> np.ndarray | None:
    """As an array, or None where one is not told or they do not fall."""
    if not levels or any(level is None or not np.isfinite(level) for level in levels):
        return None
    found = np.array(levels, dtype=float)
    return found if (np.diff(found) < 0).all() else None


def _lengths(nodes: Sequence[int], levels: np.ndarray) -> np.ndarray:
    """Of every segment, from its node to the next or to no noise at all."""
    return -np.diff(np.append(levels[list(nodes)], 0.0))
