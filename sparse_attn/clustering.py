"""Clusters of tokens per head: k-means that starts where it last ended, and blocks of clusters."""

from __future__ import annotations

import torch
from torch import Tensor


def k_means(x: Tensor, centroids: Tensor, rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Group tokens by Euclidean distance, each batch entry and head for itself.

    Args:
        x: (B, H, N, D).
        centroids: (B, H, C, D) to begin with.
        rounds: assignments; all are made, since stopping early would wait for the host.

    Returns:
        labels (B, H, N) long; centroids (B, H, C, D) float32, the means of exactly these labels,
        where a cluster without tokens keeps its place; sizes (B, H, C) long.
    """
    labels = sizes = torch.empty(0)
    for _ in range(rounds):
        labels = torch.stack(
            [
                torch.stack([_nearest(*head) for head in zip(*pair, strict=True)])
                for pair in zip(x, centroids, strict=True)
            ]
        )
        sizes = count(labels, centroids.shape[2])
        means = cluster_means(x, labels, sizes)
        centroids = torch.where(sizes[..., None] > 0, means, centroids.float())
    return labels, centroids, sizes


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """(N,) long: nearest of centroids (C, D) to each of x (N, D)."""
    centroids = centroids.float()
    return (x.float() @ centroids.mT - centroids.square().sum(-1) / 2).argmax(-1)


def count(labels: Tensor, clusters: int) -> Tensor:
    """(B, H, C) long tokens of each cluster, from labels (B, H, N)."""
    sizes = labels.new_zeros(*labels.shape[:2], clusters)
    return sizes.scatter_add_(-1, labels, torch.ones_like(labels))


def cluster_means(x: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """(B, H, C, D) float32 means of x (B, H, N, D); 0 of an empty cluster."""
    groups = torch.arange(sizes.shape[-1], device=x.device)[:, None]
    sums = torch.stack(
        [
            # a product, since a scattered sum would not repeat on a GPU
            torch.stack([(one == groups).float() @ a.float() for a, one in zip(*pair, strict=True)])
            for pair in zip(x, labels, strict=True)
        ]
    )
    return sums / sizes[..., None].clamp(min=1)


def first_centroids(x: Tensor, clusters: int, seed: int) -> Tensor:
    """(B, H, C, D) float32: different tokens of x (B, H, N, D), drawn once for all heads."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randperm(x.shape[2], generator=draw)[:clusters].to(x.device)
    return x[:, :, places].float()


def cluster_blocks(sizes: Tensor, block: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Blocks of clusters that lie one after the other; a cluster may need several.

    Args:
        sizes: (B, H, C) long tokens of each cluster.
        block: most tokens of a block.
        tokens: N, the sum of the sizes.

    Returns:
        start (B, H, n + 1) long, first token of each block; owner (B, H, n) long, its cluster.
        There are n = C + N // block blocks whatever the sizes; those not needed are empty, at the
        end.
    """
    number = (sizes + block - 1) // block
    ends = number.cumsum(-1)
    slots = torch.arange(sizes.shape[-1] + tokens // block, device=sizes.device)
    slots = slots.expand(*sizes.shape[:2], -1).contiguous()
    owner = torch.searchsorted(ends, slots, right=True)
    used = owner < sizes.shape[-1]
    owner = owner.clamp_(max=sizes.shape[-1] - 1)
    first = sizes.cumsum(-1) - sizes
    within = slots - (ends - number).gather(-1, owner)
    start = torch.where(used, first.gather(-1, owner) + within * block, tokens)
    return torch.nn.functional.pad(start, (0, 1), value=tokens), owner
