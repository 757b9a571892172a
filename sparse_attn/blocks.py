"""Blocks of tokens: leading text, video and trailing text, each cut for itself, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from accel.token_grid import TokenGrid

from . import reorder
from .gilbert import gilbert
from .layout import BLOCKS, BlockLayout
from .pattern import Routing

P = ParamSpec("P")
R = TypeVar("R")


def once(build: Callable[P, R]) -> Callable[P, R]:
    """Remember what `build` made for its last 32 (hashable) arguments, for layers to share."""

    @lru_cache(maxsize=32)
    def made(*args: Hashable, **kwargs: Hashable) -> R:
        with torch.inference_mode(False):  # else what it makes could not be used in training
            return build(*args, **kwargs)  # type: ignore[arg-type]

    @wraps(build)
    def find(*args: P.args, **kwargs: P.kwargs) -> R:
        return made(*args, **kwargs)  # type: ignore[arg-type]

    return find


@dataclass(frozen=True, eq=False)
class Blocks:
    """How the tokens of a sequence are cut; no block holds both text and video.

    Attributes:
        start: (n + 1,) int32, first token of each block, in the order of `order`.
        text: (n,) bool, which blocks are text.
        video: the blocks of the video, which lie together.
        size: most tokens in a block.
        tokens: tokens in all, S.
        order: (S,) long, the token at every position; None for the order they come in.
        regular: whether all blocks but the last hold `largest` tokens.
    """

    start: Tensor
    text: Tensor
    video: slice
    size: int
    tokens: int
    order: Tensor | None = None
    regular: bool = False

    @property
    def count(self) -> int:
        """Blocks, n."""
        return len(self.text)

    @property
    def largest(self) -> int:
        """The block size that kernels are told: 64 or 128."""
        return _largest(self.size)

    def arranged(self, x: Tensor) -> Tensor:
        """x (B, S, H, D) in the order of the blocks."""
        return x if self.order is None else x[:, self.order]

    def slots(self) -> tuple[Tensor, Tensor]:
        """(n, size) long positions of the tokens of each block, and (n, size) bool which exist."""
        within = torch.arange(self.size, device=self.start.device)
        at = self.start[:-1, None].long() + within
        return at.clamp(max=self.tokens - 1), at < self.start[1:, None]

    def owner(self) -> Tensor:
        """(S,) long: the block that every token is in, in the order the tokens came in."""
        at = torch.arange(self.tokens, device=self.start.device)
        block = torch.searchsorted(self.start[1:], at.int(), right=True)
        if self.order is None:
            return block
        return torch.empty_like(block).scatter_(0, self.order, block)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, S, H, D), in the order it came in, by blocks: (B, H, n, size, D), 0 where empty.

        Returns:
            The blocks, and (n, size) bool which of their places hold a token.
        """
        at, held = self.slots()
        if self.order is not None:
            at = self.order[at]
        return x.transpose(1, 2)[:, :, at] * held[..., None].to(x.dtype), held

    def means(self, x: Tensor) -> Tensor:
        """(B, H, n, D) float32 mean of each block of x (B, S, H, D); 0 of an empty one."""
        parts, held = self.split(x)
        return parts.float().sum(-2) / held.sum(-1)[:, None].clamp(min=1)

    def lead(self, grid: TokenGrid, frames: int = 1) -> Tensor:
        """(n,) bool: blocks that hold a token of the first `frames` frames."""
        first = torch.zeros(self.tokens, dtype=torch.bool, device=self.start.device)
        start = grid.text_first
        first[start : start + frames * grid.height * grid.width] = True
        at, held = self.slots()
        return (first[at if self.order is None else self.order[at]] & held).any(-1)


def cut(
    grid: TokenGrid,
    size: int,
    device: torch.device | str | None = None,
    *,
    sizes: Sequence[int] | None = None,
    order: Tensor | None = None,
) -> Blocks:
    """Cut a sequence into blocks of at most `size` tokens.

    Args:
        sizes: tokens of each block of the video; by default `size`, the last one ragged.
        order: (F * H * W,) long order of the video's tokens, counted from 0; text stays in place.

    Raises:
        ValueError: `sizes` that do not add up to the video, or are larger than `size`.
    """
    if not 1 <= size <= max(BLOCKS):
        raise ValueError(f"a block holds 1 to {max(BLOCKS)} tokens, got {size}")
    sizes = pieces(grid.video, size) if sizes is None else list(sizes)
    if sum(sizes) != grid.video or max(sizes, default=0) > size:
        raise ValueError(
            f"blocks of {sum(sizes)} tokens, the largest of {max(sizes, default=0)}, do not make a "
            f"video of {grid.video} tokens in blocks of at most {size}"
        )
    before, after = pieces(grid.text_first, size), pieces(grid.text_last, size)
    every = [*before, *sizes, *after]
    start = torch.tensor([0, *every], device=device).cumsum(0, dtype=torch.int32)
    text = torch.ones(len(start) - 1, dtype=torch.bool, device=device)
    video = slice(len(before), len(before) + len(sizes))
    text[video] = False
    if order is not None:
        first = torch.arange(grid.text_first, device=device)
        last = torch.arange(grid.text_first + grid.video, grid.tokens, device=device)
        order = torch.cat([first, order.to(device) + grid.text_first, last])
    regular = every == pieces(grid.tokens, _largest(size))
    return Blocks(start, text, video, size, grid.tokens, order, regular)


def _largest(size: int) -> int:
    return BLOCKS[size > BLOCKS[0]]


def pieces(tokens: int, size: int) -> list[int]:
    """`tokens` in pieces of `size`, the last one ragged."""
    return [min(size, tokens - at) for at in range(0, tokens, size)]


def even(tokens: int, size: int) -> list[int]:
    """`tokens` in as few pieces of at most `size` as there can be, as even as they can be."""
    count = -(-tokens // size)
    return [(i + 1) * tokens // count - i * tokens // count for i in range(count)]


@once
def in_order(grid: TokenGrid, size: int, device: torch.device) -> Blocks:
    """Blocks of `size` tokens in the order the tokens come in."""
    return cut(grid, size, device)


ORDERS = {"gilbert": gilbert, "hilbert": reorder.hilbert, "raster": reorder.raster}
"""Curves through a video, by name."""


@once
def along(grid: TokenGrid, order: str, size: int, device: torch.device) -> Blocks:
    """Blocks of `size` tokens along one of `ORDERS`."""
    if order == "raster":
        return cut(grid, size, device)
    return cut(grid, size, device, order=ORDERS[order](grid, device))


@once
def by_tile(grid: TokenGrid, tile: tuple[int, int, int], device: torch.device) -> Blocks:
    """Blocks that are boxes of `tile` frames, rows and columns, smaller at the far edges."""
    order, sizes = reorder.tiles(grid, tile, device)
    return cut(grid, math.prod(tile), device, sizes=sizes, order=order)


@once
def by_frame(grid: TokenGrid, size: int, device: torch.device) -> tuple[Blocks, Tensor]:
    """Blocks that never straddle two frames, as even as can be, and (n,) long the frame of each.

    Text blocks have frame -1.
    """
    per_frame = even(grid.height * grid.width, size)
    blocks = cut(grid, size, device, sizes=per_frame * grid.frames)
    frame = torch.full((blocks.count,), -1, device=device)
    frame[blocks.video] = torch.arange(grid.frames, device=device).repeat_interleave(len(per_frame))
    return blocks, frame


def routing(
    map: Tensor,
    rows: Blocks,
    columns: Blocks,
    batch: int,
    heads: int,
    capacity: int | None = None,
    share: float | None = None,
) -> Routing:
    """The routing of a map (B or 1, H or 1, nQ, nK) over blocks of queries and of keys.

    Args:
        share: of all pairs that the map holds at least, where that is known (`with_text`).
    """
    layout = BlockLayout.from_map(
        map.expand(batch, heads, -1, -1),
        rows.start,
        columns.start,
        rows.largest,
        columns.largest,
        seq_q=rows.tokens,
        seq_k=columns.tokens,
        capacity=capacity,
        regular=rows.regular and columns.regular,
        share=share,
    )
    order_q, order_k = (None if o is None else o[None, None] for o in (rows.order, columns.order))
    return Routing(layout, order_q, order_k)


def with_text(grid: TokenGrid, share: float) -> float:
    """Share of all pairs, where of the video's `share` is computed, and text is whole."""
    return 1 - (1 - share) * (grid.video / grid.tokens) ** 2


def pairs(map: Tensor, blocks: Blocks) -> float:
    """Share of all pairs that a map (..., n, n) holds; waits for the device."""
    size = blocks.start.diff().double()
    return float((map.double() @ size @ size).mean()) / blocks.tokens**2


class Static(Protocol):
    """A pattern whose map depends on nothing but the grid."""

    def map(self, grid: TokenGrid, device: torch.device) -> tuple[Tensor, Blocks]:
        """(nQ, nK) bool, and the blocks of queries and keys."""
        ...


@once
def static(
    pattern: Static, grid: TokenGrid, device: torch.device, shape: tuple[int, int]
) -> Routing:
    """The routing of a static pattern for (B, H) `shape`, shared by layers and steps."""
    map, blocks = pattern.map(grid, device)
    entries = shape[0] * shape[1] * int(map.sum())  # read on the host, but once
    share = pairs(map, blocks)
    return routing(map[None, None], blocks, blocks, *shape, capacity=entries, share=share)
