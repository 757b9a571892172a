"""Where tokens lie: the grid of frames, rows and columns that a denoiser call is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from accel.family import arguments_of

Grid = tuple[int, int, int]
"""Frames, rows, columns."""

LATENT_SIZES = ("num_frames", "height", "width")


def token_grid(
    denoiser: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Grid | None:
    """The grid of the image or video tokens of a call, None where its shapes do not tell.

    From latents (B, C, H, W), (B, C, F, H, W) or (B, F, C, H, W) and the patch size, from the
    latent sizes passed along (LTX) or the shapes (QwenImage). Tokens (B, S, C) that come packed
    with neither (Flux) are taken to be a square picture where S is a square number, as released
    code of the methods that use this does.
    """
    named = arguments_of(denoiser, args, kwargs)
    sizes = tuple(named.get(name) for name in LATENT_SIZES)
    if all(isinstance(size, int) for size in sizes):
        return sizes  # type: ignore[return-value]
    if named.get("img_shapes"):
        first = named["img_shapes"][0]
        while not isinstance(first[0], int):
            first = first[0]
        return tuple(first)
    latents = next(iter(named.values()))
    if latents.ndim == 3:
        side = math.isqrt(latents.shape[1])
        return (1, side, side) if side * side == latents.shape[1] else None
    config = getattr(denoiser, "_orig_mod", denoiser).config
    patch = config.get("patch_size") or 1
    deep = config.get("patch_size_t") or 1
    deep, *sides = (deep, patch, patch) if isinstance(patch, int) else (deep, *patch)[-3:]
    rows, columns = latents.shape[-2] // sides[0], latents.shape[-1] // sides[1]
    if latents.ndim == 4:
        return 1, rows, columns
    axis = 2 if latents.shape[1] == config.get("in_channels") else 1
    return -(-latents.shape[axis] // deep), rows, columns
