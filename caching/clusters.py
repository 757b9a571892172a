"""Groups of tokens: k-means in the L1 norm, and one token of each group."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
"""Rounds of k-means; all are run, since stopping early would wait for the host."""


def assign(
    tokens: Tensor, count: int, centroids: Tensor | None, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Group tokens (B, S, D) by k-means, as ClusCa (2509.10312) does.

    Tokens belong to the nearest centroid in the L1 norm, centroids are the means of their tokens;
    one without tokens stays where it is. Every sample is grouped for itself.

    Args:
        count: groups.
        centroids: (B, count, D) to begin with; None draws tokens, the same places in all samples.

    Returns:
        labels (B, S) from 0 to `count` - 1, centroids (B, count, D).
    """
    if centroids is None:
        places = torch.randperm(tokens.shape[1], generator=draw, device=tokens.device)[:count]
        centroids = tokens[:, places]
    groups = torch.arange(count, device=tokens.device)
    for _ in range(ROUNDS):
        labels = torch.cdist(tokens, centroids, p=1).argmin(-1)
        members = (labels[:, None] == groups[:, None]).to(tokens.dtype)  # (B, count, S)
        sizes = members.sum(-1, keepdim=True)
        # a product, since a scattered sum would not repeat on a GPU
        centroids = torch.where(sizes > 0, members @ tokens / sizes.clamp(min=1), centroids)
    return labels, centroids


def one_of_each(labels: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """A random token of every group: indices (B, `count`), ordered by group.

    All samples share the draw. A group without tokens gets a token chosen for another group.
    """
    order = torch.randperm(labels.shape[1], generator=draw, device=labels.device)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    best = labels.new_full((len(labels), count), -1)
    best.scatter_reduce_(1, labels, rank.expand_as(labels), "amax")
    return order[best]  # of -1, the token of the highest rank, which is best in its group
