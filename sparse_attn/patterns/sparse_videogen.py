"""Sparse VideoGen (2502.01776): each head is spatial or temporal, and a band serves both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import Blocks, cut, once, routing
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force


@dataclass(frozen=True)
class SparseVideoGen:
    """Heads that look within frames and heads that look along time, told apart in every call.

    A few random queries are attended in full, through the band over tokens frame by frame, and
    through the band over tokens place by place; the smaller squared error wins, per batch entry and
    head. Tokens of temporal heads are put in the latter order, so that both kinds are one band. The
    paper leaves the first 20 % of steps and 3 % of layers dense; see `SparseAttention`.

    Args:
        density: share of the map to compute, text included; sets the width of the band.
        rows: queries on which heads are classified, drawn once a run from all of them.
        sink: whether spatial heads also see all of the first frame, on top of the density.
        block: tokens of a block, 64 or 128.
    """

    density: float = 0.3
    rows: int = 64
    sink: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        check_fields(
            self,
            density=(0 < self.density <= 1, "above 0, at most 1"),
            rows=(self.rows >= 1, "at least 1"),
            block=(self.block in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        grid = place.grid
        if grid.frames == 1:
            return None
        blocks, maps, orders = bands(self, grid, q.device)
        if "rows" not in place.state:
            draw = torch.Generator().manual_seed(place.layer)
            rows = torch.randint(grid.tokens, (self.rows,), generator=draw)
            place.state["rows"] = rows.to(q.device)
        group = q.shape[2] // k.shape[2]
        scale = place.scale_of(q)
        error = self.errors(q, k, v, place.state["rows"], blocks, maps, orders, scale)
        shared = error.unflatten(1, (-1, group)).sum(2)  # query heads that share keys agree
        temporal = (shared[..., 1] < shared[..., 0])[..., None]  # (B, H_k, 1)
        order_k = torch.where(temporal, orders[1], orders[0])
        order_q = order_k.repeat_interleave(group, 1)
        temporal = temporal.repeat_interleave(group, 1)
        map = torch.where(temporal[..., None], maps[1], maps[0])
        shape = q.shape[0], q.shape[2]
        layout = routing(map, blocks, blocks, *shape, share=self.density).layout
        return Routing(layout, order_q, order_k)

    def errors(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows: Tensor,
        blocks: Blocks,
        maps: Tensor,
        orders: Tensor,
        scale: float,
    ) -> Tensor:
        """(B, H, 2) float32 mean squared error of spatial and temporal attention on `rows`."""
        group = q.shape[2] // k.shape[2]
        key, value = (x.repeat_interleave(group, 2).transpose(1, 2).float() for x in (k, v))
        scores = q[:, rows].transpose(1, 2).float() @ key.mT * scale
        exact = scores.softmax(-1) @ value  # (B, H, rows, D)
        filled = blocks.owner()  # block of a position
        found = []
        for map, order in zip(maps, orders, strict=True):
            block = torch.zeros_like(filled).scatter(0, order, filled)  # of a token
            seen = map[block[rows]][:, block]
            out = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
            found.append((out - exact).square().mean((-2, -1)))
        return torch.stack(found, -1)


@once
def bands(
    pattern: SparseVideoGen, grid: TokenGrid, device: torch.device
) -> tuple[Blocks, Tensor, Tensor]:
    """Blocks, (2, n, n) bool maps and (2, S) long orders of spatial and of temporal heads.

    A band |i - j| <= w of N tokens holds 1 - (1 - w / N)^2 of the pairs, which gives w.
    """
    blocks = cut(grid, pattern.block, device)
    text = grid.tokens - grid.video
    share = (pattern.density * grid.tokens**2 - 2 * grid.video * text - text**2) / grid.video**2
    width = grid.video * (1 - math.sqrt(1 - min(max(share, 0.0), 1.0)))
    middle = (blocks.start[1:] + blocks.start[:-1]) / 2
    map = force((middle[:, None] - middle).abs() <= width, blocks.text, blocks.text)
    spatial = force(map, columns=blocks.lead(grid)) if pattern.sink else map
    order = torch.arange(grid.tokens, device=device)
    video = order[grid.text_first : grid.text_first + grid.video]
    by_place = video.view(grid.frames, -1).mT.flatten()
    turned = order.clone()
    turned[grid.text_first : grid.text_first + grid.video] = by_place
    return blocks, torch.stack([spatial, map]), torch.stack([order, turned])
