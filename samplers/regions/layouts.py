"""Where the tokens of a family's image or video are: in its latents, its blocks, its attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from accel.family import Family

Grid = tuple[int, int, int]
"""Frames, rows, columns of tokens."""


@dataclass(frozen=True)
class Layout:
    """How a family arranges tokens, as far as a part of them is to be taken.

    Attributes:
        linears: of every block list, what its linear layers see: "image" tokens (the text has
            layers of its own, or none), or "joint" image and text.
        text: where text lies in the attention: before the image, after it, or nowhere.
        rotary: argument of the blocks that holds positions, and its form: "shared" rows (S, D) of
            the image, "joint" rows (T + S, D), "complex" a tuple of complex image and text rows,
            "batched" rows (B or 1, S, ...).
        merged: the image tokens are part of a stream that begins with the text, of which every
            sample has its own length.
        pixels: latents packed into a token, where the channels of packed latents hold several.
        controls: arguments of the denoiser that are lists of (B, S, D) added between blocks.
        modulated: axes of the time embedding where every token has one of its own; 0 for never.
        after: the layer of the denoiser that is called on the stream after the last block.
    """

    linears: Mapping[str, Literal["image", "joint"]]
    text: Literal["first", "last", ""] = ""
    rotary: tuple[str, Literal["shared", "joint", "complex", "batched"]] | None = None
    merged: bool = False
    pixels: int = 1
    controls: tuple[str, ...] = ()
    modulated: int = 0
    after: str = "norm_out"


DOUBLE_SINGLE: dict[str, Literal["image", "joint"]] = {
    "transformer_blocks": "image",
    "single_transformer_blocks": "joint",
}
CONTROL = "controlnet_block_samples"
HUNYUAN_VIDEO = Layout(DOUBLE_SINGLE, "last", ("freqs_cis image_rotary_emb", "shared"))

LAYOUTS = {
    "sd3": Layout(
        {"transformer_blocks": "image"}, "last", controls=("block_controlnet_hidden_states",)
    ),
    "flux": Layout(
        DOUBLE_SINGLE,
        "first",
        ("image_rotary_emb", "joint"),
        pixels=4,
        controls=(CONTROL, "controlnet_single_block_samples"),
    ),
    "qwenimage": Layout(
        {"transformer_blocks": "image"},
        "first",
        ("image_rotary_emb", "complex"),
        pixels=4,
        controls=(CONTROL,),
    ),
    "lumina2": Layout({"layers": "joint"}, "first", ("image_rotary_emb", "batched"), merged=True),
    "pixart": Layout({"transformer_blocks": "image"}),
    "wan": Layout({"blocks": "image"}, rotary=("rotary_emb", "batched"), modulated=4),
    "hunyuan_video": HUNYUAN_VIDEO,
    "hunyuan_video_i2v": HUNYUAN_VIDEO,
    "ltx": Layout(
        {"transformer_blocks": "image"}, rotary=("image_rotary_emb", "batched"), modulated=3
    ),
    "cogvideox": Layout({"transformer_blocks": "joint"}, "first", ("image_rotary_emb", "shared")),
}

REASONS = {
    "sana": "its feed-forwards are convolutions over the whole picture and its attention sums keys "
    "and values before any query, so that no token can be computed apart",
    "qwenimage_edit": "its tokens are modulated in two groups, by their place in the sequence",
    "mochi": "its attention runs over every sample apart, without the padding of its text",
    "dit": "it was not trained as a flow, and its pipeline steps a batch of doubled latents",
}


def why_not(family: Family) -> str:
    """Why regions cannot be computed apart on `family`; empty where they can."""
    if family.name in LAYOUTS:
        return ""
    if family.kind != "transformer":
        return "convolutions need their neighbours, so a token cannot be computed apart"
    return REASONS.get(family.name, "how its tokens are laid out is not described")


def call_grid(denoiser: torch.nn.Module, called: Mapping[str, Any], axis: int) -> Grid:
    """The grid of the tokens that a denoiser is called about.

    Args:
        called: the arguments of the call by name, latents first.
        axis: of the channels, of unpacked latents.

    Raises:
        ValueError: packed latents whose other arguments do not tell.
    """
    latents = next(iter(called.values()))
    if latents.ndim > 3:
        return latent_grid(denoiser, latents, axis)
    sizes = tuple(called.get(name) for name in ("num_frames", "height", "width"))
    if all(isinstance(size, int) for size in sizes):
        return sizes  # type: ignore[return-value]
    shapes, positions = called.get("img_shapes"), called.get("img_ids")
    if shapes:
        first = shapes[0]
        while not isinstance(first[0], int):
            first = first[0]
        return tuple(first)
    if isinstance(positions, Tensor):
        rows = positions.reshape(-1, positions.shape[-1])[: latents.shape[1]]
        own = rows[rows[:, 0] == rows[0, 0]]  # pictures to be edited have another number there
        rows_columns = (own.amax(0) - own.amin(0) + 1).tolist()
        return 1, int(rows_columns[1]), int(rows_columns[2])
    places = called.get("video_coords")
    if isinstance(places, Tensor):
        counts = [len(axis.unique()) for axis in places[0]]
        if math.prod(counts) == latents.shape[1]:  # every place once
            return counts[0], counts[1], counts[2]
    raise ValueError(
        f"the {latents.shape[1]} tokens of this call are on a grid that its arguments do not "
        f"tell, so regions of them cannot be chosen"
    )


def patch_of(denoiser: torch.nn.Module) -> Grid:
    """Frames, rows and columns of latents in a token."""
    config = getattr(denoiser, "_orig_mod", denoiser).config
    patch, deep = config.get("patch_size") or 1, config.get("patch_size_t") or 1
    if isinstance(patch, int):
        return deep, patch, patch
    return tuple((deep, *patch)[-3:])  # type: ignore[return-value]


def latent_grid(denoiser: torch.nn.Module, latents: Tensor, axis: int) -> Grid:
    """The token grid of unpacked latents with their channels along `axis`."""
    deep, tall, wide = patch_of(denoiser)
    *_, rows, columns = latents.shape
    frames = 1 if latents.ndim == 4 else latents.shape[3 - axis]
    return -(-frames // deep), rows // tall, columns // wide


def to_patches(latents: Tensor, axis: int, patch: Grid, pixels: int) -> Tensor:
    """Latents as (N, tokens, pixels, channels).

    Args:
        axis: of the channels, of unpacked latents.
        patch: latents in a token, of unpacked ones.
        pixels: latents in the channels of a packed token, innermost.
    """
    if latents.ndim == 3:
        return latents.unflatten(2, (-1, pixels)).transpose(2, 3)
    video = latents[:, :, None] if latents.ndim == 4 else latents.movedim(axis, 1)
    deep, tall, wide = patch
    n, channels, frames, rows, columns = video.shape
    cut = video.reshape(
        n, channels, frames // deep, deep, rows // tall, tall, columns // wide, wide
    )
    cut = cut.permute(0, 2, 4, 6, 3, 5, 7, 1)
    return cut.reshape(n, -1, math.prod(patch), channels)


def to_mask(active: Tensor, latents: Tensor, axis: int, patch: Grid) -> Tensor:
    """Tokens (N, S) of truth values as a mask that broadcasts over `latents`."""
    if latents.ndim == 3:
        return active[..., None]
    sizes = [size for i, size in enumerate(latents.shape) if i not in (0, axis)]
    deep, tall, wide = patch
    grid = (sizes[0] // deep if len(sizes) == 3 else 1, sizes[-2] // tall, sizes[-1] // wide)
    mask = active.unflatten(1, grid)
    for i, size in enumerate(patch):
        mask = mask.repeat_interleave(size, dim=i + 1)
    return mask if latents.ndim == 4 else mask.unsqueeze(axis)
