"""Sliding tile attention (2502.04507): tiles of the video see the tiles around them, whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import Blocks, cut, even, once, pairs, routing
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..reorder import tiles
from ..selection import force

Window = tuple[int, int, int]


@dataclass(frozen=True)
class SlidingTile:
    """Every query tile sees a window of key tiles, moved inwards at the borders of the video.

    So every query sees the same number of tiles and no block is half masked: of n tiles,
    1 - wt * wh * ww / n are left out (section 3 and A4 of the paper's released code). Text is seen
    by all and sees all. Tiles at the far edges are smaller where the grid is no multiple of them.

    Args:
        window: tiles in time, height and width, odd numbers; a side longer than the video's is
            that of the video.
        tile: tokens of a tile in time, height and width; (6, 8, 8) is published for HunyuanVideo,
            whose 30 x 48 x 80 tokens it divides. More than 128 tokens are several blocks.
        heads: a window for every head instead, as a search over prompts finds them.
    """

    window: Window = (3, 3, 3)
    tile: tuple[int, int, int] = (6, 8, 8)
    heads: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        windows = (self.window, *self.heads)
        check_fields(
            self,
            tile=(len(self.tile) == 3 and min(self.tile) >= 1, "three numbers of tokens"),
            window=(
                all(len(w) == 3 and all(n >= 1 and n % 2 for n in w) for w in windows),
                "three odd numbers of tiles (and so every one of heads)",
            ),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        count, heads = self.tiles(place.grid), q.shape[2]
        if self.heads and len(self.heads) != heads:
            raise ValueError(
                f"SlidingTile.heads has {len(self.heads)} windows, and attention {heads} heads"
            )
        windows = self.heads or (self.window,)
        if all(w >= n for window in windows for w, n in zip(window, count, strict=True)):
            return None
        return _routing(self, place.grid, q.device, q.shape[0], heads)

    def tiles(self, grid: TokenGrid) -> tuple[int, int, int]:
        """Tiles of the video in time, height and width."""
        sides = (grid.frames, grid.height, grid.width)
        return tuple(-(-s // t) for s, t in zip(sides, self.tile, strict=True))  # type: ignore

    def map(self, grid: TokenGrid, device: torch.device) -> tuple[Tensor, Blocks]:
        """(1 or H, n, n) bool, and the blocks."""
        order, sizes = tiles(grid, self.tile, device)
        parts = [even(size, min(BLOCKS[-1], max(size, 1))) for size in sizes]
        largest = max(max(part) for part in parts)
        blocks = cut(grid, largest, device, sizes=[n for part in parts for n in part], order=order)
        each = torch.tensor([len(part) for part in parts], device=device)
        windows = self.heads or (self.window,)
        seen = torch.stack([self.seen(window, grid, device) for window in windows])
        seen = seen.repeat_interleave(each, 1).repeat_interleave(each, 2)
        map = torch.zeros(len(windows), blocks.count, blocks.count, dtype=torch.bool, device=device)
        map[:, blocks.video, blocks.video] = seen
        return force(map, blocks.text, blocks.text), blocks

    def seen(self, window: Window, grid: TokenGrid, device: torch.device) -> Tensor:
        """(n, n) bool: which tiles see which, tiles in raster order."""
        count = self.tiles(grid)
        near = torch.ones(1, 1, dtype=torch.bool, device=device)
        for tiles_along, width in zip(count, window, strict=True):
            at = torch.arange(tiles_along, device=device)
            half = min(width, tiles_along) // 2
            centre = at.clamp(half, max(tiles_along - 1 - half, half))
            along = (centre[:, None] - at).abs() <= half
            near = torch.kron(near, along)
        return near

    def density(self, grid: TokenGrid) -> float:
        """Share of pairs of tiles that are computed, by `window`."""
        count = self.tiles(grid)
        return math.prod(min(w, n) for w, n in zip(self.window, count, strict=True)) / math.prod(
            count
        )


@once
def _routing(
    pattern: SlidingTile, grid: TokenGrid, device: torch.device, batch: int, heads: int
) -> Routing:
    map, blocks = pattern.map(grid, device)
    entries = int(map.sum()) * batch * (heads // len(map))  # read on the host, but once
    share = pairs(map, blocks)
    return routing(map[None], blocks, blocks, batch, heads, capacity=entries, share=share)
