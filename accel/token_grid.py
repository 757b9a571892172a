"""Where tokens lie: the frames, rows and columns that a denoiser call is about, and its text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from .family import arguments_of

Grid = tuple[int, int, int]
"""Frames, rows, columns."""

LATENT_SIZES = ("num_frames", "height", "width")


@dataclass(frozen=True)
class TokenGrid:
    """The tokens one self-attention runs over.

    Attributes:
        frames: latent frames after patching; 1 for a picture.
        height: rows of tokens in a frame.
        width: columns of tokens in a frame.
        text_first: tokens before those of the video (text of a joint sequence).
        text_last: tokens after them (text, or pictures to edit).
    """

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0

    @property
    def video(self) -> int:
        """Tokens of the video."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens."""
        return self.text_first + self.video + self.text_last

    def with_text(self, tokens: int, place: Literal["first", "last"]) -> TokenGrid | None:
        """This grid in a sequence of `tokens`, the rest of it at `place`; None if it is shorter."""
        rest = tokens - self.tokens
        if rest < 0:
            return None
        first, last = (rest, 0) if place == "first" else (0, rest)
        return replace(self, text_first=self.text_first + first, text_last=self.text_last + last)

    def within_frame(self, tokens: int) -> TokenGrid | None:
        """One frame at the level of a U-Net where it has `tokens`; None if none has.

        Every level halves both sides, rounding up as its strided convolutions do.
        """
        rows, columns = self.height, self.width
        while rows * columns > tokens and rows * columns > 1:
            rows, columns = -(-rows // 2), -(-columns // 2)
        return TokenGrid(1, rows, columns) if rows * columns == tokens else None


def call_grid(
    denoiser: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> TokenGrid | None:
    """The grid of a denoiser call, its text left out; None where the call does not tell.

    From latents (B, C, H, W), (B, C, F, H, W) or (B, F, C, H, W) and the patch size, from the
    latent sizes passed along (LTX), the shapes (QwenImage) or the positions of packed tokens (Flux,
    read from the device once). Pictures beside the one that is made, to edit or to follow, are
    `text_last`.
    """
    named = arguments_of(denoiser, args, kwargs)
    sizes = [named.get(name) for name in LATENT_SIZES]
    if all(isinstance(size, int) for size in sizes):
        return TokenGrid(*sizes)  # type: ignore[arg-type]
    if named.get("img_shapes"):
        return _of_shapes(named["img_shapes"][0])
    latents = next(iter(named.values()))
    if latents.ndim == 3:
        return _of_positions(named.get("img_ids"), latents.shape[1])
    config = getattr(denoiser, "_orig_mod", denoiser).config
    patch = config.get("patch_size") or 1
    deep = config.get("patch_size_t") or 1
    deep, *sides = (deep, patch, patch) if isinstance(patch, int) else (deep, *patch)[-3:]
    rows, columns = latents.shape[-2] // sides[0], latents.shape[-1] // sides[1]
    if latents.ndim == 4:
        return TokenGrid(1, rows, columns)
    axis = 2 if latents.shape[1] == config.get("in_channels") else 1
    return TokenGrid(-(-latents.shape[axis] // deep), rows, columns)


def _of_shapes(shapes: Any) -> TokenGrid:
    """The first picture of a sample; (frames, rows, columns) of each, or of the only one."""
    first, *others = [shapes] if isinstance(shapes[0], int) else shapes
    frames, rows, columns = first
    return TokenGrid(frames, rows, columns, text_last=sum(math.prod(other) for other in others))


def _of_positions(ids: torch.Tensor | None, tokens: int) -> TokenGrid | None:
    """From (S, 3) positions: number of the picture, row, column."""
    if ids is None or ids.is_meta:
        return None
    ids = ids.reshape(-1, ids.shape[-1])[:tokens].long().cpu()
    own = ids[ids[:, 0] == ids[0, 0]]
    rows, columns = (int(side) + 1 for side in own[:, 1:3].amax(0) - own[:, 1:3].amin(0))
    grid = TokenGrid(1, rows, columns, text_last=tokens - len(own))
    return grid if rows * columns == len(own) else None


def token_grid(
    denoiser: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Grid | None:
    """Frames, rows and columns of the image or video tokens of a call, None where unknown.

    Without reading from the device: tokens (B, S, C) that come packed with neither sizes nor shapes
    (Flux) are taken to be a square picture where S is a square number, as released code of the
    caching methods that use this does.
    """
    named = arguments_of(denoiser, args, kwargs)
    latents = next(iter(named.values()))
    told = all(isinstance(named.get(name), int) for name in LATENT_SIZES)
    if latents.ndim == 3 and not told and not named.get("img_shapes"):
        side = math.isqrt(latents.shape[1])
        return (1, side, side) if side * side == latents.shape[1] else None
    grid = call_grid(denoiser, args, kwargs)
    return None if grid is None else (grid.frames, grid.height, grid.width)
