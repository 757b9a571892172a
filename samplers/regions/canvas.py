"""Latents on the plane they are about, whether a model takes a plane or packed tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .layouts import Grid


@dataclass(frozen=True)
class Canvas:
    """How latents (B, C, H, W), (B, C, F, H, W) or packed (B, S, C) lie on frames.

    Attributes:
        grid: frames, rows and columns of tokens of the whole picture.
        patch: rows and columns of latents in a token.
        packed: latents are (B, S, C) with the channels of a token's latents in one axis.
        flat: latents have no axis of frames.
    """

    grid: Grid
    patch: tuple[int, int]
    packed: bool
    flat: bool = False

    def size(self, scale: float) -> tuple[int, int]:
        """Rows and columns of tokens at `scale` of the whole, rounded; at least one."""
        _, rows, columns = self.grid
        return max(round(rows * scale), 1), max(round(columns * scale), 1)

    def open(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """As frames (B, C, F, H, W), of `size` tokens."""
        if not self.packed:
            return latents[:, :, None] if self.flat else latents
        tall, wide = self.patch
        cut = latents.unflatten(2, (-1, tall, wide)).unflatten(1, (self.grid[0], *size))
        return cut.permute(0, 4, 1, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)

    def close(self, frames: Tensor) -> Tensor:
        """The latents that lie on `frames`."""
        if not self.packed:
            return frames[:, :, 0] if self.flat else frames
        tall, wide = self.patch
        cut = frames.unflatten(4, (-1, wide)).unflatten(3, (-1, tall))
        return cut.permute(0, 2, 3, 5, 1, 4, 6).flatten(4, 6).flatten(1, 3)

    def tokens(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """As tokens (B, S, C * latents in one), of `size` tokens a frame."""
        return latents if self.packed else self._flattened.close(self.open(latents, size))

    def laid(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (B, S, C * latents in one) as the model takes them, `size` a frame."""
        return tokens if self.packed else self.close(self._flattened.open(tokens, size))

    @property
    def _flattened(self) -> Canvas:
        return replace(self, packed=True, flat=False)

    def picked(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Of latents of the whole, one in place of several: noise stays independent noise."""
        frames = self.open(latents, self.grid[1:])
        for axis, count, patch in zip((3, 4), size, self.patch, strict=True):
            length, wanted = frames.shape[axis], count * patch
            index = torch.arange(wanted, device=frames.device) * length // wanted
            frames = frames.index_select(axis, index)
        return self.close(frames)

    def resized(self, latents: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """Latents of `old` tokens as `new`, linear between rows and columns."""
        frames = self.open(latents, old)
        tall, wide = self.patch
        size = (frames.shape[2], new[0] * tall, new[1] * wide)
        mode = "trilinear"
        return self.close(interpolate(frames.float(), size, mode=mode).to(latents.dtype))


def fresh(first: Tensor, shape: torch.Size, number: int) -> Tensor:
    """Noise of `shape`, made of the noise (N, ...) a run began with: shuffled, signs drawn.

    Every sample gets its own noise, whatever else is in its batch, and the pipeline's generator is
    not drawn from.

    Args:
        number: of the draw in its run, from 0; another gives other noise.
    """
    values = first.flatten(1)
    count = shape[1:].numel()
    draw = torch.Generator().manual_seed(7919 * (number + 1))
    order = torch.randperm(values.shape[1], generator=draw)
    repeats = -(-count // values.shape[1])
    order = order.repeat(repeats)[:count].to(values.device)
    signs = torch.randint(0, 2, (count,), generator=draw).to(values) * 2 - 1
    return (values.index_select(1, order) * signs).view(len(values), *shape[1:])
