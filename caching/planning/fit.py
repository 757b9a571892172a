"""Fitted weights: a segment's rule set so that the student ends nearest to the true state."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, np.inf)
"""Of the mean diagonal: what keeps nearly parallel outputs from taking opposite huge weights."""
ALONE = 1e-3
"""The ridge of a single sample, on which none can be tried."""


@dataclass(frozen=True)
class Change:
    """What a fit adds to the weights of the newest outputs, newest first.

    Attributes:
        weights: (h,) fitted on all samples that take part.
        apart: (M, h) for every sample, fitted on the others; `weights` for those that take no part.
    """

    weights: np.ndarray
    apart: np.ndarray


def fitted_change(
    reached: Tensor,
    outputs: Sequence[Tensor],
    target: Tensor,
    rows: Sequence[int] | None = None,
    priors: Sequence[np.ndarray] = (),
    ridges: Sequence[float] = RIDGES,
) -> Change:
    """What to add to the weights of `outputs` so that `reached` comes nearest to `target`.

    Ridge regression in closed form over all entries of the samples `rows`, towards one of the
    `priors`. Prior, ridge and how many outputs take part are those that are best, by the mean
    logarithm of the squared distance, on samples left out of the fit one at a time; an infinite
    ridge keeps the prior. Nothing is changed where every output is zero.

    Args:
        reached: (M, …) where the rule as it is leads.
        outputs: at computed steps, newest first, each (M, …).
        target: (M, …) true states.
        rows: samples that take part; all if None.
        priors: each (h,); no change, if there is none.
    """
    count, size = len(reached), len(outputs)
    part = list(range(count)) if rows is None else list(rows)
    columns = torch.stack([o.flatten(1) for o in outputs], dim=1).double()  # (M, h, entries)
    missing = (target - reached).flatten(1).double()
    grams = (columns @ columns.mT).cpu().numpy()
    sides = (columns @ missing[..., None])[..., 0].cpu().numpy()
    squares = missing.square().sum(1).cpu().numpy()[part]
    centres = list(priors) or [np.zeros(size)]
    if not grams[part].any():
        return Change(np.zeros(size), np.zeros((count, size)))
    gram, side = grams[part].sum(0), sides[part].sum(0)
    if len(part) == 1:
        only = _towards(centres[0], gram, side, ALONE, size)
        return Change(only, np.tile(only, (count, 1)))

    def left_out(setting: tuple[np.ndarray, float, int]) -> np.ndarray:
        return np.stack(
            [_towards(setting[0], gram - grams[i], side - sides[i], *setting[1:]) for i in part]
        )

    def score(setting: tuple[np.ndarray, float, int]) -> float:
        weights = left_out(setting)
        left = squares - 2 * (weights * sides[part]).sum(1)
        left += np.einsum("mi,mij,mj->m", weights, grams[part], weights)
        return float(np.log(np.maximum(left, 1e-12 * squares.mean() + 1e-300)).mean())

    settings = list(itertools.product(centres, ridges, range(1, size + 1)))
    best = min(settings, key=score)
    whole = _towards(best[0], gram, side, *best[1:])
    apart = np.tile(whole, (count, 1))
    apart[part] = left_out(best)
    return Change(whole, apart)


def _towards(
    centre: np.ndarray, gram: np.ndarray, side: np.ndarray, ridge: float, used: int
) -> np.ndarray:
    """The ridge solution near `centre` in which only the `used` newest outputs differ from it."""
    size = gram.diagonal().mean()
    if size == 0 or np.isinf(ridge):
        return centre
    pull = (side - gram @ centre)[:used]
    found = centre.copy()
    found[:used] += np.linalg.solve(gram[:used, :used] + ridge * size * np.eye(used), pull)
    return found
