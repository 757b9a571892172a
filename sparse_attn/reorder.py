"""Orders of the tokens of a video, and their inverses.

An order is (F * H * W,) long, the raster number of the token at every position: `x[:, order]` puts
tokens in order, and indexing that by `inverse(order)` gives them back, exactly. Raster order has
frames outermost, then rows, then columns. `Blocks` of a pattern carry an order to the kernel, which
sees q, k and v after their rotary embeddings.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from accel.token_grid import TokenGrid


def raster(grid: TokenGrid, device: torch.device | str | None = None) -> Tensor:
    """Frame by frame, row by row, as models have them."""
    return torch.arange(grid.video, device=device)


def token_major(grid: TokenGrid, device: torch.device | str | None = None) -> Tensor:
    """Place by place, all frames of a place together (Sparse VideoGen's temporal heads)."""
    return raster(grid, device).view(grid.frames, -1).mT.flatten()


def tiles(
    grid: TokenGrid, tile: tuple[int, int, int], device: torch.device | str | None = None
) -> tuple[Tensor, list[int]]:
    """Tile by tile, tiles and the tokens within them in raster order.

    Args:
        tile: frames, rows and columns of a tile; those at the far edges are smaller where the grid
            is no multiple of it.

    Returns:
        The order, and how many tokens each tile has.

    Raises:
        ValueError: a tile without tokens.
    """
    if len(tile) != 3 or min(tile) < 1:
        raise ValueError(f"a tile has frames, rows and columns of at least 1, got {tile}")
    places = raster(grid, device).view(grid.frames, grid.height, grid.width)
    parts = [
        places[tuple(slice(at, at + size) for at, size in zip(corner, tile, strict=True))]
        for corner in itertools.product(
            *(range(0, side, size) for side, size in zip(places.shape, tile, strict=True))
        )
    ]
    return torch.cat([part.flatten() for part in parts]), [part.numel() for part in parts]


def hilbert(grid: TokenGrid, device: torch.device | str | None = None) -> Tensor:
    """Along the Hilbert curve of the smallest cube around the grid: near in order, near in space.

    Where the grid fills its cube, neighbours in order are neighbours in space; else the curve jumps
    where it leaves the grid. Numbered by Skilling's transform (Programming the Hilbert curve, 2004)
    over the axes longer than one token.
    """
    sides = [side for side in (grid.frames, grid.height, grid.width) if side > 1]
    if not sides:
        return raster(grid, device)
    axes = [torch.arange(side, device=device) for side in sides]
    at = [axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]
    bits = (max(sides) - 1).bit_length()
    for bit in range(bits - 1, 0, -1):
        low = (1 << bit) - 1
        for axis in range(len(at)):
            turned = (at[axis] >> bit & 1).bool()
            swap = (at[0] ^ at[axis]) & low
            first = torch.where(turned, at[0] ^ low, at[0] ^ swap)
            at[axis] = torch.where(turned, at[axis], at[axis] ^ swap)
            at[0] = first
    for axis in range(1, len(at)):
        at[axis] = at[axis] ^ at[axis - 1]
    flip = torch.zeros_like(at[0])
    for bit in range(bits - 1, 0, -1):
        flip = torch.where((at[-1] >> bit & 1).bool(), flip ^ ((1 << bit) - 1), flip)
    number = torch.zeros_like(at[0])
    for bit in range(bits - 1, -1, -1):
        for axis in at:
            number = number << 1 | (axis ^ flip) >> bit & 1
    return number.argsort()


def inverse(order: Tensor) -> Tensor:
    """The position of every token: (..., S) long of an order (..., S)."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
