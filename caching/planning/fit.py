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


@dataclass(frozen=True)
class Products:
    """Inner products that a fit is made from, of every sample.

    Attributes:
        grams: (M, h, h) of the outputs, newest first.
        sides: (M, h) of them with what is missing.
        squares: (M,) of what is missing.
    """

    grams: np.ndarray
    sides: np.ndarray
    squares: np.ndarray

    def left(self, weights: np.ndarray, part: Sequence[int]) -> np.ndarray:
        """(m,) squares of what is still missing of the samples `part` with weights (m, h)."""
        left = self.squares[part] - 2 * (weights * self.sides[part]).sum(1)
        return left + np.einsum("mi,mij,mj->m", weights, self.grams[part], weights)


def fitted_change(
    reached: Tensor,
    outputs: Sequence[Tensor],
    target: Tensor,
    rows: Sequence[int] | None = None,
    priors: Sequence[np.ndarray] = (),
    ridges: Sequence[float] = RIDGES,
) -> Change:
    """What to add to the weights of `outputs` so that `reached` comes nearest to `target`.

    Args:
        reached: (M, …) where the rule as it is leads.
        outputs: at computed steps, newest first, each (M, …).
        target: (M, …) true states.
        rows: samples that take part; all if None.
        priors: as of `best_change`, like `ridges`.
    """
    columns = torch.stack([o.flatten(1) for o in outputs], dim=1).double()  # (M, h, entries)
    missing = (target - reached).flatten(1).double()
    products = Products(
        (columns @ columns.mT).cpu().numpy(),
        (columns @ missing[..., None])[..., 0].cpu().numpy(),
        missing.square().sum(1).cpu().numpy(),
    )
    return best_change(products, rows, priors, ridges)


def best_change(
    products: Products,
    rows: Sequence[int] | None = None,
    priors: Sequence[np.ndarray] = (),
    ridges: Sequence[float] = RIDGES,
) -> Change:
    """Weights that leave least missing.

    Ridge regression in closed form over all entries of the samples `rows`, towards one of the
    `priors`. Prior, ridge and how many outputs take part are those that are best, by the mean
    logarithm of the squared distance, on samples left out of the fit one at a time; an infinite
    ridge keeps the prior. Nothing is changed where every output is zero.

    Args:
        priors: each (h,); no change, if there is none.
    """
    count, size = products.sides.shape
    part = list(range(count)) if rows is None else list(rows)
    centres = list(priors) or [np.zeros(size)]
    grams, sides = products.grams[part], products.sides[part]
    if not grams.any():
        return Change(np.zeros(size), np.zeros((count, size)))
    gram, side = grams.sum(0), sides.sum(0)
    if len(part) == 1:
        only = _towards(centres[0], gram, side, ALONE, size)
        return Change(only, np.tile(only, (count, 1)))
    others, missed = gram - grams, side - sides
    least = 1e-12 * products.squares[part].mean() + 1e-300

    def score(setting: tuple[np.ndarray, float, int]) -> float:
        centre, ridge, used = setting
        left = products.left(_towards(centre, others, missed, ridge, used), part)
        return float(np.log(np.maximum(left, least)).mean())

    settings = itertools.product(centres, ridges, range(1, size + 1))
    centre, ridge, used = min(settings, key=score)
    whole = _towards(centre, gram, side, ridge, used)
    apart = np.tile(whole, (count, 1))
    apart[part] = _towards(centre, others, missed, ridge, used)
    return Change(whole, apart)


def _towards(
    centre: np.ndarray, gram: np.ndarray, side: np.ndarray, ridge: float, used: int
) -> np.ndarray:
    """The ridge solution near `centre` in which only the `used` newest outputs differ from it.

    Args:
        gram: (…, h, h).
        side: (…, h).
    """
    found = np.broadcast_to(centre, side.shape).copy()
    size = gram.diagonal(axis1=-2, axis2=-1).mean(-1)
    if np.isinf(ridge) or not size.any():
        return found
    pull = (side - gram @ centre)[..., :used, None]
    shift = ridge * np.where(size > 0, size, 1.0)[..., None, None] * np.eye(used)
    found[..., :used] += np.linalg.solve(gram[..., :used, :used] + shift, pull)[..., 0]
    return found
