"""Tiles: tokens that lie together in frames, rows and columns, and are chosen together."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from .layouts import Grid


class Tiles:
    """A grid of tokens cut into tiles from its first corner; those at an axis's end may be smaller.

    Args:
        grid: frames, rows and columns of tokens.
        tile: the same of a tile; what is larger than the grid is cut to it.
    """

    def __init__(self, grid: Grid, tile: Grid, device: torch.device | str = "cpu") -> None:
        self.grid = grid
        frames, rows, columns = (min(t, g) for t, g in zip(tile, grid, strict=True))
        self.tile = frames, rows, columns
        self.total = grid[0] * grid[1] * grid[2]
        numbers = torch.arange(self.total, device=device).view(grid)
        firsts = itertools.product(*map(range, (0, 0, 0), grid, self.tile))
        members = [
            numbers[f : f + frames, r : r + rows, c : c + columns].flatten() for f, r, c in firsts
        ]
        self.sizes = sorted(map(len, members), reverse=True)
        self.members = torch.nn.utils.rnn.pad_sequence(members, True, self.total)

    @property
    def count(self) -> int:
        return len(self.sizes)

    def left_out(self, tokens: int) -> int:
        """How many tiles are left out where about `tokens` tokens should be; never all."""
        return min(round(tokens * self.count / self.total), self.count - 1)

    def means(self, score: Tensor) -> Tensor:
        """Scores (N, tokens) as those of tiles, (N, tiles)."""
        if self.count == self.total:
            return score
        frames = score.unflatten(1, (1, *self.grid))
        pooled = avg_pool3d(
            frames, self.tile, stride=self.tile, ceil_mode=True, count_include_pad=False
        )
        return pooled.flatten(1)

    def tokens(self, chosen: Tensor) -> Tensor:
        """The tokens (N, k), ascending, of tiles (N, m).

        k is the same whichever tiles are chosen, so that no one need know them: as many as the m
        largest have. Where there are fewer, the last token is named again.
        """
        if self.count == self.total:
            return chosen
        width = sum(self.sizes[: chosen.shape[1]])
        found = self.members[chosen].flatten(1).sort(dim=1).values[:, :width]
        last = torch.where(found < self.total, found, 0).amax(dim=1, keepdim=True)
        return torch.where(found < self.total, found, last)
