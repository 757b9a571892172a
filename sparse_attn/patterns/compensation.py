"""SVG-EAR (2603.08982): clusters left out count by their means, and which those had better be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clustering import cluster_blocks

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

CHUNK = 2**25
"""Scores held at once."""
PROBES = 4
"""Queries of a cluster on which errors are measured. The paper does not say how many; one misleads
where a cluster holds two kinds of them."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of the video's tokens: labels (B, H, N), means (B, H, C, D), sizes (B, H, C)."""

    labels: Tensor
    means: Tensor
    sizes: Tensor

    def repeated(self, group: int) -> Clusters:
        """The clusters of key heads, once for each of the `group` query heads that share them."""
        if group == 1:
            return self
        return Clusters(
            *(x.repeat_interleave(group, 1) for x in (self.labels, self.means, self.sizes))
        )


def fill_in(
    rows: Clusters,
    columns: Clusters,
    values: Tensor,
    kept: Tensor,
    video: slice,
    scale: float,
    merge: Merge,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
) -> Tensor:
    """Add to `o` the clusters left out, each as |K_j| copies of its mean key and mean value.

    Args:
        values: (B, H, KC, D) mean values.
        kept: (B, H, QC, KC) bool, which were computed.
        video: positions of the video's tokens, ordered by cluster.
        scale: factor of the scores.
        merge: puts two attentions together, as `merge_lse`.
        q, k, v, o, lse: as the kernel saw them and as it returned them.

    Returns:
        o (B, S, H, D) in its dtype; rows of text as they were.
    """
    out = o.clone()
    label = rows.labels.sort(dim=-1, stable=True).values
    size = columns.sizes.log()[:, :, None]
    step = max(1, CHUNK // columns.sizes.numel())
    for at in range(0, label.shape[-1], step):
        own = label[..., at : at + step]
        part = slice(video.start + at, video.start + at + own.shape[-1])
        query = q[:, part].transpose(1, 2).float()
        scores = query @ columns.means.mT * scale + size
        done = kept.gather(2, own[..., None].expand(-1, -1, -1, kept.shape[-1]))
        scores = scores.masked_fill(done, -torch.inf)
        other = scores.logsumexp(-1)
        base = other.masked_fill(other == -torch.inf, 0)
        rest = ((scores - base[..., None]).exp() @ values).transpose(1, 2)
        mixed, _ = merge(o[:, part].float(), lse[..., part].float(), rest, other)
        out[:, part] = mixed.to(o.dtype)
    return out


def by_error(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Clusters,
    columns: Clusters,
    density: float,
    block: int,
    scale: float,
) -> Tensor:
    """(B, H, QC, KC) bool: the pairs of clusters whose means would do worst, per pair of tokens.

    By the mean square over `PROBES` queries, since what clusters add to the error is all but
    orthogonal.

    Args:
        q: (B, H, N, D) of the video; k and v (B, H_k, N, D).
        rows: of queries; `columns`: of keys, per key head.
        density: share of the head's pairs of tokens to keep, the pair that crosses it included.
        block: tokens of a block in which keys are looked at.
        scale: factor of the scores.
    """
    group = q.shape[1] // k.shape[1]
    kept = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            key, value, label, mean, sizes = (
                x[b, h // group]
                for x in (k.float(), v.float(), columns.labels, columns.means, columns.sizes)
            )
            probe = _probes(rows.labels[b, h], rows.sizes[b, h])
            query = q[b, h][probe].float()
            error = probe_errors(query, key, value, label, mean, sizes, block, scale)
            error = error.square().unflatten(0, (PROBES, -1)).mean(0)
            # the queries of a cluster weigh its error as they do its cost, and cancel
            worth = (error / sizes.clamp(min=1)).flatten()
            cost = (rows.sizes[b, h][:, None] * sizes).flatten()
            order = worth.argsort(descending=True, stable=True)
            before = cost[order].cumsum(0) - cost[order]
            chosen = (before < density * q.shape[2] ** 2) & (cost[order] > 0)
            kept.append(torch.zeros_like(chosen).scatter(0, order, chosen).view_as(error))
    return torch.stack(kept).unflatten(0, q.shape[:2])


def _probes(labels: Tensor, sizes: Tensor) -> Tensor:
    """(PROBES * QC,) long: tokens spread over every cluster, in the order they come."""
    order = labels.argsort(stable=True)
    share = torch.arange(1, 2 * PROBES, 2, device=labels.device)[:, None]
    spread = sizes.cumsum(0) - sizes + share * sizes // (2 * PROBES)
    return order[spread.clamp(max=len(order) - 1)].flatten()


def probe_errors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    labels: Tensor,
    means: Tensor,
    sizes: Tensor,
    block: int,
    scale: float,
) -> Tensor:
    """(P, KC) float32 norm of the change in output of queries q (P, D), per cluster.

    That is of attention in full, but with one cluster counted by the means of its keys and values.

    Args:
        k, v: (N, D). labels: (N,). means: (KC, D). sizes: (KC,).
    """
    scores = q @ k.mT * scale
    lse = scores.logsumexp(-1, keepdim=True)
    weights = (scores - lse).exp()
    out = weights @ v
    start, owner = (x[0, 0] for x in cluster_blocks(sizes[None, None], block, len(k)))
    at = start[:-1, None] + torch.arange(block, device=q.device)
    held = at < start[1:, None]
    token = labels.argsort(stable=True)[at.clamp(max=len(k) - 1)]  # (n, block)
    inside = (weights[:, token] * held).transpose(0, 1)  # (n, P, block)
    member = (owner == torch.arange(len(sizes), device=q.device)[:, None]).float()  # (KC, n)
    member = member * (held.any(-1))
    numerator = torch.einsum("cn,npd->pcd", member, inside @ v[token])
    denominator = torch.einsum("cn,np->pc", member, inside.sum(-1))
    mean_v = torch.einsum("cn,nd->cd", member, (v[token] * held[..., None]).sum(1))
    mean_v = mean_v / sizes[:, None].clamp(min=1)
    approximate = (q @ means.mT * scale - lse).exp() * sizes
    change = approximate[..., None] * mean_v - numerator
    surplus = approximate - denominator
    return ((change - out[:, None] * surplus[..., None]) / (1 + surplus)[..., None]).norm(dim=-1)
