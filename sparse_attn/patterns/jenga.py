"""Jenga (2505.16864): blocks along a space-filling curve, the best of them and their neighbours."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import ORDERS, along, once, routing, with_text
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force, select


@dataclass(frozen=True)
class Jenga:
    """Each block keeps what its mean says matters, the blocks around it, and all text.

    Of the probabilities between means of the video's blocks, a row keeps a fixed share or what
    covers `mass`, whichever is more. The progressive resolution of the paper is a sampler's
    business and not part of this.

    Args:
        drop: share of the video's blocks a row may leave out (0.75; 0.85 in later stages).
        mass: share of the probability a row covers at least, the crossing block included.
        neighbours: whether blocks with tokens next to one of the row's, diagonals too, are kept.
        first_frame: whether blocks with tokens of the first frame are kept, as Wan needs.
        order: the curve, see `accel.sparse_attn.blocks.ORDERS`.
        block: tokens of a block, 64 or 128.
    """

    drop: float = 0.75
    mass: float = 0.3
    neighbours: bool = True
    first_frame: bool = False
    order: str = "gilbert"
    block: int = 128

    def __post_init__(self) -> None:
        check_fields(
            self,
            drop=(0 <= self.drop <= 1, "from 0 to 1"),
            mass=(0 <= self.mass <= 1, "from 0 to 1"),
            order=(self.order in ORDERS, f"one of {', '.join(ORDERS)}"),
            block=(self.block in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        blocks = along(place.grid, self.order, self.block, q.device)
        key = blocks.means(k)[:, :, blocks.video].repeat_interleave(q.shape[2] // k.shape[2], 1)
        share = (blocks.means(q)[:, :, blocks.video] @ key.mT * place.scale_of(q)).softmax(-1)
        chosen = select(share, keep=1 - self.drop, mass=self.mass)
        if self.neighbours:
            chosen = chosen | touching(place.grid, self.order, self.block, q.device)
        map = blocks.text.new_zeros(*share.shape[:2], blocks.count, blocks.count)
        map[..., blocks.video, blocks.video] = chosen
        whole = blocks.text | blocks.lead(place.grid) if self.first_frame else blocks.text
        least = with_text(place.grid, 1 - self.drop)
        map = force(map, blocks.text, whole)
        return routing(map, blocks, blocks, q.shape[0], q.shape[2], share=least)


@once
def touching(grid: TokenGrid, order: str, block: int, device: torch.device) -> Tensor:
    """(n, n) bool: video blocks of which a token is the same as, or next to, one of the other's."""
    along_curve = ORDERS[order](grid, device)
    owner = torch.empty_like(along_curve)
    owner[along_curve] = torch.arange(grid.video, device=device) // block
    count = -(-grid.video // block)
    shape = (grid.frames, grid.height, grid.width)
    owner = owner.view(shape)
    found = torch.zeros(count, count, dtype=torch.bool, device=device)
    for step in itertools.product((-1, 0, 1), repeat=3):
        pairs = tuple(zip(step, shape, strict=True))
        here, there = (
            owner[tuple(slice(max(0, side * d), n + min(0, side * d)) for d, n in pairs)]
            for side in (1, -1)
        )
        found[here.flatten(), there.flatten()] = True
    return found
