"""Radial attention (2506.19852): the farther two frames, the narrower and rarer the band."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import Blocks, cut, static
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force

FILLED = 1 / 3
"""Share of a block's queries that make one of its columns count as filled."""
COVERED = 0.6
"""Share of the touched columns of a block that must be filled for the block to be kept."""


@dataclass(frozen=True)
class Radial:
    """Energy falls with the distance in frames: a static mask of O(n log n) tokens.

    Frames at most one apart see each other whole. Farther ones see a band around the same place
    whose width halves whenever the distance doubles; where it would be narrower than a block, only
    some distances are kept. Text is seen by all and sees all (A5 of the paper's released code).

    Args:
        decay: width of the bands; the authors use 0.2 for Wan 2.1 and 0.95 for HunyuanVideo.
        sink: whether all frames see the first one, as for Wan.
        block: tokens of a block, 64 or 128; also the narrowest half-width of a band.
    """

    decay: float = 0.95
    sink: bool = True
    block: int = 128

    def __post_init__(self) -> None:
        check_fields(
            self,
            decay=(self.decay > 0, "above 0"),
            block=(self.block in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        if place.grid.frames <= 2:
            return None  # all frames are neighbours
        return static(self, place.grid, q.device, (q.shape[0], q.shape[2]))

    def map(self, grid: TokenGrid, device: torch.device) -> tuple[Tensor, Blocks]:
        """(n, n) bool, and the blocks. One block of queries is looked at a time."""
        blocks = cut(grid, self.block, device)
        edges = blocks.start[blocks.video.start : blocks.video.stop + 1] - grid.text_first
        rows = []
        for at in range(0, grid.video, self.block):
            queries = torch.arange(at, min(at + self.block, grid.video), device=device)
            seen = self.tokens(queries, grid).float().mean(0)  # (F * H * W,) density of columns
            filled, touched = (_sums(seen > low, edges) for low in (FILLED, 0))
            rows.append(filled > COVERED * touched)
        # a block keeps itself: where frames are smaller than blocks the rule could leave it nothing
        map = torch.eye(blocks.count, dtype=torch.bool, device=device)
        map[blocks.video, blocks.video] |= torch.stack(rows)
        return force(map, blocks.text, blocks.text), blocks

    def tokens(self, queries: Tensor, grid: TokenGrid) -> Tensor:
        """(n, F * H * W) bool: which video tokens the `queries` (n,) see, before blocks are cut."""
        per_frame, device = grid.height * grid.width, queries.device
        keys = torch.arange(grid.video, device=device)
        apart = (queries[:, None] // per_frame - keys // per_frame).abs()
        across = (queries[:, None] % per_frame - keys % per_frame).abs()
        widths = torch.tensor([self.width(d, per_frame) for d in range(grid.frames)], device=device)
        seen = across <= widths[apart]
        return seen | (keys < per_frame) if self.sink else seen

    def width(self, apart: int, per_frame: int) -> float:
        """Half-width in tokens of the band between frames `apart` frames apart; -1 for none."""
        if apart <= 1:
            return float(per_frame)
        length = 2 ** per_frame.bit_length() / 2 ** apart.bit_length()
        if length < self.block and apart % int(self.block / length):
            return -1.0
        return max(self.decay * length, float(self.block))


def _sums(chosen: Tensor, edges: Tensor) -> Tensor:
    """How many of `chosen` (n,) are true between successive `edges`."""
    total = torch.nn.functional.pad(chosen.cumsum(0), (1, 0))
    return total[edges.long()].diff()
