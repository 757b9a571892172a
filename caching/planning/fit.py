"""Fitted weights: a segment's rule set so that the student ends nearest to the true state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RIDGES = (1e-6, 1e-4, 1e-2, np.inf)
"""Of the mean diagonal: what keeps nearly parallel outputs from taking opposite huge weights."""


def fitted_change(
    reached: Tensor,
    outputs: Sequence[Tensor],
    target: Tensor,
    ridges: Sequence[float] = RIDGES,
) -> np.ndarray:
    """What to add to the weights of `outputs` so that `reached` comes nearest to `target`.

    Ridge regression in closed form over all entries of all samples. The ridge is the one whose fit
    on all samples but one is nearest on that one, summed over which is left out; an infinite one
    changes nothing. Equal weights for outputs all alike, zero where every output is zero.

    Args:
        reached: (M, …) where the rule as it is leads.
        outputs: at computed steps, each (M, …).
        target: (M, …) true states.

    Returns:
        (len(outputs),).
    """
    columns = torch.stack([o.flatten(1) for o in outputs], dim=1).double()  # (M, h, entries)
    grams = (columns @ columns.mT).cpu().numpy()
    missing = (target - reached).flatten(1).double()
    sides = (columns @ missing[..., None])[..., 0].cpu().numpy()
    if not grams.any():
        return np.zeros(len(outputs))
    gram, side, count = grams.sum(0), sides.sum(0), len(grams)
    if count == 1:
        return _solved(gram, side, ridges[0])

    def left_out(ridge: float) -> float:
        total = 0.0
        for own, pull in zip(grams, sides, strict=True):
            weights = _solved(gram - own, side - pull, ridge)
            total += weights @ own @ weights - 2 * weights @ pull
        return float(total)

    return _solved(gram, side, min(ridges, key=left_out))


def _solved(gram: np.ndarray, side: np.ndarray, ridge: float) -> np.ndarray:
    size = gram.diagonal().mean()
    if size == 0 or np.isinf(ridge):
        return np.zeros(len(side))
    return np.linalg.solve(gram + ridge * size * np.eye(len(side)), side)
