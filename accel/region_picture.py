"""Pictures of regions: what each step computed, over the picture or video that was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .media import BAR, GAP, TEXT, font_for, to_uint8, write_picture, write_video
from .regions import Regions

SIDE = 192
LABEL = 26
HELD = np.array([58.0, 84.0, 138.0], np.float32)
DIM = 0.35
"""Of tokens that were held: the share of the picture's brightness over the colour `HELD`."""

FPS = 4.0
COLUMNS = 7
MOVING = 12
"""Panels of a moving picture, at most."""


def frames_of(picture: Any, regions: Regions, sample: int) -> np.ndarray:
    """What to draw over: 8-bit frames (F, H, W, 3).

    Args:
        picture: a picture, frames (arrays (H, W, 3) or (F, H, W, 3) of bytes or of floats in
            [0, 1], or `PIL.Image`s), or None for the first channels of the latents.

    Raises:
        ValueError: it is none of these.
    """
    if picture is None:
        return preview(regions, sample)
    if isinstance(picture, Sequence) and not isinstance(picture, str):
        picture = np.stack([np.asarray(frame) for frame in picture])
    array = np.asarray(picture)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != 3:
        raise ValueError(
            f"picture must be (height, width, 3), or (frames, height, width, 3) of a video, got "
            f"shape {array.shape}; take one sample of a batch"
        )
    return array if array.dtype == np.uint8 else to_uint8(array)


def preview(regions: Regions, sample: int) -> np.ndarray:
    """The first three channels of the final latents, each over its own range, as colours."""
    if regions.latents is None:
        raise ValueError("the run did not end, so there are no latents to draw over; give picture=")
    values = regions.latents[sample].float().cpu()[:, :3]
    values = values.expand(-1, 3) if values.shape[1] < 3 else values
    low, high = values.amin(0), values.amax(0)
    scaled = (values - low) / (high - low).clamp(min=1e-6)
    return to_uint8(scaled.view(*regions.grid, 3).numpy())


def latent_frame(frame: int, frames: int, grid_frames: int) -> int:
    """Which frame of tokens a frame of the video belongs to.

    Autoencoders of video hold the first frame alone and n for every later one, or n for each.
    """
    if grid_frames > 1 and (frames - 1) % (grid_frames - 1) == 0:
        return -(-frame * (grid_frames - 1) // (frames - 1))
    return frame * grid_frames // frames


def panel(regions: Regions, frame: np.ndarray, mask: np.ndarray, label: str) -> Image.Image:
    """`frame` (H, W, 3) where `mask` (rows, columns) is true, under a blue veil elsewhere."""
    height, width = frame.shape[:2]
    scale = max(SIDE / max(height, width), 1e-6)
    size = max(round(width * scale), 8), max(round(height * scale), 8)
    nearest = Image.Resampling.NEAREST
    small = nearest if scale >= 1 else Image.Resampling.BOX
    picture = np.asarray(Image.fromarray(frame).resize(size, small)).astype(np.float32)
    shown = np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, nearest))[..., None]
    held = picture.mean(-1, keepdims=True) * DIM + HELD * (1 - DIM)
    body = np.where(shown.astype(bool), picture, held).astype(np.uint8)
    canvas = Image.new("RGB", (size[0], size[1] + LABEL), BAR)
    canvas.paste(Image.fromarray(body), (0, LABEL))
    font = font_for(label, size[0] - 8, LABEL // 2)
    ImageDraw.Draw(canvas).text((4, LABEL / 2), label, TEXT, font, anchor="lm")
    return canvas


def sheet(panels: Sequence[Image.Image], columns: int) -> np.ndarray:
    """Panels of one size in rows of `columns`."""
    wide, tall = panels[0].size
    rows = math.ceil(len(panels) / columns)
    columns = min(columns, len(panels))
    canvas = Image.new("RGB", (columns * (wide + GAP) - GAP, rows * (tall + GAP) - GAP), "white")
    for i, each in enumerate(panels):
        canvas.paste(each, (i % columns * (wide + GAP), i // columns * (tall + GAP)))
    return np.asarray(canvas)


def draw(regions: Regions, path: str | Path, picture: Any = None, sample: int = 0) -> Path:
    """Draw the regions of every step; the ending of `path` says as what.

    Of a picture, `.png` is a sheet with a panel per step, `.mp4` shows the steps in turn. Of a
    video, `.png` has a row per step with its first, middle and last frame, and in `.mp4` the video
    plays in a panel for each of up to 12 steps.

    Raises:
        ValueError: another ending, no such sample, or a picture of another kind.
    """
    path = Path(path)
    if path.suffix not in (".png", ".mp4"):
        raise ValueError(f"regions are drawn as .png or .mp4, not {path.name!r}")
    frames = frames_of(picture, regions, sample)
    video = len(frames) > 1
    masks = [regions.mask(i, sample).numpy() for i in range(regions.total)]

    def at(step: int, frame: int) -> Image.Image:
        mask = masks[step]
        share = f"{mask.mean():.0%}" if step in regions.active else "all"
        label = f"step {step}: {share}" + (f", frame {frame}" if video else "")
        part = latent_frame(frame, len(frames), regions.grid[0])
        return panel(regions, frames[frame], mask[part], label)

    steps = range(regions.total)
    if path.suffix == ".png":
        shown = sorted({0, len(frames) // 2, len(frames) - 1})
        panels = [at(step, frame) for step in steps for frame in shown]
        return write_picture(path, sheet(panels, 2 * len(shown) if video else COLUMNS))
    if not video:
        stills = [np.asarray(at(step, 0)) for step in steps]
        return write_video(path, np.stack(stills), FPS)
    some = sorted(regions.active) or list(steps)
    chosen = [some[round(i)] for i in np.linspace(0, len(some) - 1, min(len(some), MOVING))]
    moving = [sheet([at(s, f) for s in chosen], 4) for f in range(len(frames))]
    return write_video(path, np.stack(moving), FPS)
