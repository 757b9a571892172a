"""The shared selector: which blocks of a map of scores are kept. It never waits for the host."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Budget = Literal["row", "head"]


def select(
    scores: Tensor,
    *,
    keep: float | Tensor | None = None,
    mass: float | Tensor | None = None,
    include_crossing: bool = True,
    budget: Budget = "row",
    minimum: int = 1,
) -> Tensor:
    """Keep the highest scores, by their number, by their sum, or by whichever asks for more.

    Equal scores are taken in the order they stand. Entries of -inf are never kept.

    Args:
        scores: (..., nQ, nK); for `mass`, probabilities that sum to 1 over the budget's entries.
        keep: share of the entries to keep, rounded to the nearest number; a float, or a tensor that
            broadcasts against (..., nQ) for rows and (...) for heads.
        mass: share of the sum to keep, likewise.
        include_crossing: whether the entry with which the sum passes `mass` is kept too, so that
            the mass is covered (XAttention, SVG2); without it the sum stays at or below `mass`
            (SpargeAttn).
        budget: "row" chooses among the keys of each query block, "head" among all pairs of a head,
            which can leave rows with `minimum` entries.
        minimum: fewest entries kept in a row.

    Returns:
        (..., nQ, nK) bool.

    Raises:
        ValueError: neither `keep` nor `mass` given, or numbers outside of 0 to 1.
    """
    if keep is None and mass is None:
        raise ValueError("select needs keep (a share of the blocks) or mass (of their sum)")
    for name, value in (("keep", keep), ("mass", mass)):
        if isinstance(value, float | int) and not 0 <= value <= 1:
            raise ValueError(f"{name} is a share from 0 to 1, got {value}")
    if budget == "row":
        return _best(scores, keep, mass, include_crossing, minimum)
    flat = _best(scores.flatten(-2), keep, mass, include_crossing, 0).view(scores.shape)
    return flat | _best(scores, 0.0, None, True, minimum) if minimum else flat


def force(map: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
    """`map` (..., nQ, nK) with whole rows (..., nQ) and whole columns (..., nK) added."""
    if rows is not None:
        map = map | rows[..., :, None]
    return map if columns is None else map | columns[..., None, :]


def _best(
    scores: Tensor,
    keep: float | Tensor | None,
    mass: float | Tensor | None,
    include_crossing: bool,
    minimum: int,
) -> Tensor:
    """(..., n) bool of scores (..., n): the best entries of every line."""
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    places = torch.arange(scores.shape[-1], device=scores.device)
    kept = places < minimum
    if keep is not None:
        # halves round up; torch.round would take them to the even number
        number = (keep[..., None] if isinstance(keep, Tensor) else keep) * scores.shape[-1] + 0.5
        kept = kept | (places + 1 <= number + 1e-6)
    if mass is not None:
        share = mass[..., None] if isinstance(mass, Tensor) else mass
        total = ordered.masked_fill(ordered == -torch.inf, 0).cumsum(-1)
        before = total - ordered if include_crossing else total
        kept = kept | (before < share if include_crossing else before <= share)
    kept = kept & (ordered > -torch.inf)
    return torch.zeros_like(kept.expand_as(scores)).scatter(-1, order, kept.expand_as(scores))
