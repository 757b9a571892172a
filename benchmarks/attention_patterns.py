"""The patterns that are judged, each at several densities, and two controls."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.sparse_attn import (
    VSA,
    AdaSpa,
    AttentionTile,
    DraftAttention,
    Jenga,
    Radial,
    SlidingTile,
    SpargeAttn,
    SparseVideoGen,
    SparseVideoGen2,
    XAttention,
)
from accel.sparse_attn.blocks import in_order, routing
from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.kernels.block_sum import block_sum
from accel.sparse_attn.pattern import Pattern, Place, Routing
from accel.sparse_attn.selection import select


@dataclass(frozen=True)
class Exact:
    """A control: the blocks of this very call that hold most attention, at a share per row."""

    density: float

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        blocks = in_order(place.grid, 64, q.device)
        full = torch.ones(1, 1, blocks.count, blocks.count, dtype=torch.bool)
        whole = routing(full, blocks, blocks, q.shape[0], q.shape[2]).layout
        lse = KERNELS["gather"].attend(q, k, v, whole, q.shape[-1] ** -0.5)[1]
        sums = block_sum(q, k, lse, blocks.start, blocks.start, q.shape[-1] ** -0.5)
        map = select(sums, keep=self.density)
        return routing(map, blocks, blocks, q.shape[0], q.shape[2])


@dataclass(frozen=True)
class Random:
    """A control: random blocks, and each query block's own."""

    density: float

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        blocks = in_order(place.grid, 64, q.device)
        draw = torch.Generator().manual_seed(0)
        scores = torch.rand(q.shape[0], q.shape[2], blocks.count, blocks.count, generator=draw)
        scores.diagonal(dim1=-2, dim2=-1).fill_(2.0)
        map = select(scores, keep=self.density)
        return routing(map, blocks, blocks, q.shape[0], q.shape[2])


CLUSTERS = SparseVideoGen2(query_clusters=20, key_clusters=64, least=0.0, block=64)
"""Of 2,048 tokens the shares that the published 300 and 1,000 clusters are of 32,760."""

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)

PATTERNS: dict[str, list[Pattern]] = {
    "exact blocks (control)": [Exact(d) for d in SHARES],
    "random blocks (control)": [Random(d) for d in SHARES],
    "AdaSpa": [AdaSpa(1 - d) for d in SHARES],
    "AttentionTile": [AttentionTile(a, block=64) for a in (1, 2, 3, 4)],
    "DraftAttention": [DraftAttention(d, (1, 8, 8)) for d in SHARES],
    "Jenga": [Jenga(1 - d, 0.0, neighbours=False, block=64) for d in SHARES],
    "Radial": [Radial(d, sink, 64) for d, sink in ((0.2, False), (0.2, True), (1.0, True))],
    "SlidingTile": [
        SlidingTile(w, (4, 4, 4)) for w in ((1, 1, 1), (1, 3, 3), (3, 1, 1), (3, 3, 3))
    ],
    "SpargeAttn": [SpargeAttn(m, similarity=-0.1, block_q=64) for m in (0.3, 0.6, 0.8, 0.95)],
    "SparseVideoGen": [SparseVideoGen(d, block=64) for d in SHARES],
    "SparseVideoGen2": [replace(CLUSTERS, mass=m) for m in (0.3, 0.6, 0.8, 0.9, 0.97)],
    "SparseVideoGen2 + EAR": [
        replace(CLUSTERS, compensate=True, density=d) for d in (0.02, *SHARES[:-1])
    ],
    "VSA (untrained)": [VSA(1 - d) for d in SHARES],
    "XAttention": [XAttention(m, 8, 64) for m in (0.3, 0.6, 0.8, 0.9, 0.97)],
}
