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

    The share of computed steps stays (rounded up): in a run of as many steps every node goes to the
    nearest noise level; with fewer or more, nodes are interpolated between those of the plan, so
    that they lie as densely as before where they lay densely. What a fit added is interpolated
    likewise, as a share of its segment's length in noise level, and of less where segments become
    shorter. A segment that comes out at another length than expected, by more than `STRETCH`, or
    that wants outputs from before the run, or that lies between one with a fit and one without,
    gets nothing added. None does in a run of more steps, whose nodes lie denser than a fit knows:
    on the U-Net that ships, 27, 18 and 12 of 75 steps came to 71, 54 and 52 dB with a fit moved
    there, and to 70, 59 and 55 without; 15, 10 and 7 of 40 to 61, 52 and 44 with it, and to 58, 48
    and 41 without.

    Args:
        nodes: computed steps of `steps`, rising, the first 0.
        weights: of every node, what the fit adds to the newest outputs; or empty.
        own: (steps,) noise levels the plan was made at, falling; empty if they are not known,
            which leaves the share of the run.
        levels: (total,) noise levels of the run.

    Returns:
        Nodes, no two the same, and weights of each; no weights where every step is computed.
    """
    total = len(levels)
    before, after = _known(own), _known(levels)
    if before is None or after is None or len(before) != steps:
        if total == steps:
            return tuple(nodes), weights
        before, after = 1 - np.arange(steps) / steps, 1 - np.arange(total) / total
    elif total == steps and np.allclose(before, after, rtol=ALIKE, atol=0):
        return tuple(nodes), weights
    count = min(-(-len(nodes) * total // steps), total)
    if count == total:
        return tuple(range(total)), ()
    # where between the plan's nodes each new one lies; np.interp looks up in what rises
    between = np.linspace(0, len(nodes) - 1, count)
    wanted = np.interp(between, np.arange(len(nodes)), before[list(nodes)])
    places = np.interp(-wanted, -after, np.arange(total))
    found = [0]
    for j in range(1, count):
        nearest = max(round(float(places[j])), found[-1] + 1)
        found.append(min(nearest, total - count + j))
    if len(weights) != len(nodes) or total > steps:
        return tuple(found), ()
    lengths = _lengths(nodes, before)
    shares = _table(weights) / lengths[:, None]
    columns = [np.interp(between, np.arange(len(nodes)), column) for column in shares.T]
    now, once = _lengths(found, after), np.interp(between, np.arange(len(nodes)), lengths)
    stretch = now / (once * len(nodes) / count)
    # a fit mends what bends within a segment, of which a shorter one has less
    scaled = np.stack(columns, axis=1) * (now * np.minimum(now / once, 1.0))[:, None]
    scaled[(stretch > STRETCH) | (stretch < 1 / STRETCH)] = 0.0
    for j, row in enumerate(scaled):
        around = weights[int(between[j] + 1e-9)], weights[int(np.ceil(between[j] - 1e-9))]
        if row[j + 1 :].any() or not all(around):  # outputs from before the run; a fit of one only
            row[:] = 0.0
    rows = (tuple(float(w) for w in row[: j + 1]) for j, row in enumerate(scaled))
    return tuple(found), tuple(rows)


def _table(weights: Weights) -> np.ndarray:
    """(nodes, longest row), zeros where a row is shorter."""
    longest = max(len(row) for row in weights)
    return np.array([[*row, *[0.0] * (longest - len(row))] for row in weights])


def _known(levels: Levels) -> np.ndarray | None:
    """As an array, or None where one is not told or two are the same (second-order schedulers)."""
    if not levels or any(level is None or not np.isfinite(level) for level in levels):
        return None
    found = np.array(levels, dtype=float)
    return found if (np.diff(found) < 0).all() else None


def _lengths(nodes: Sequence[int], levels: np.ndarray) -> np.ndarray:
    """Of every segment, from its node to the next or to no noise at all."""
    return -np.diff(np.append(levels[list(nodes)], 0.0))
