"""Writes pictures and videos: whole or not at all, large enough to look at, and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from .files import atomic

MIN_HEIGHT = 256
GAP = 8
BAR = "#2b313c"
TEXT = "#f2f4f7"
MARK = "made by accel"
"""A comment in every PNG and video, which tells them from those of others."""


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] as 8-bit values."""
    return (np.clip(frames, 0, 1) * 255).round().astype(np.uint8)


def enlarge(frames: np.ndarray, least: int = MIN_HEIGHT) -> np.ndarray:
    """Frames (F, H, W, 3) at least `least` pixels high, scaled by a whole number, smoothly."""
    factor = -(-least // frames.shape[1])
    if factor <= 1:
        return frames
    size = frames.shape[2] * factor, frames.shape[1] * factor
    return np.stack(
        [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BICUBIC)) for f in frames]
    )


def write_picture(path: Path, frame: np.ndarray) -> Path:
    """Write a picture (H, W, 3) of 8-bit values as it is."""
    marked = PngInfo()
    marked.add_text("Comment", MARK)
    with atomic(path) as part:
        Image.fromarray(frame).save(part, **({"pnginfo": marked} if path.suffix == ".png" else {}))
    return path


def write_video(path: Path, frames: np.ndarray, fps: float) -> Path:
    """Write frames (F, H, W, 3) of 8-bit values as h264 in yuv420p, which browsers play.

    Sides that are odd get their last row or column twice.
    """
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    with atomic(path) as part:
        writer: Any = imageio.get_writer(
            part,
            format="FFMPEG",  # type: ignore[arg-type]
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            quality=None,
            macro_block_size=1,
            ffmpeg_log_level="error",
            output_params=[
                *("-crf", "12", "-movflags", "+faststart", "-metadata", f"comment={MARK}")
            ],
        )
        with writer:
            for frame in np.pad(frames, odd, mode="edge"):
                writer.append_data(frame)
    return path


def side_by_side(left: np.ndarray, right: np.ndarray, labels: tuple[str, str]) -> np.ndarray:
    """Two videos of one shape (F, H, W, 3), 8-bit, beside one another under their labels.

    Returns:
        8-bit frames of even sides, each half enlarged as by `enlarge`.
    """
    left, right = enlarge(left), enlarge(right)
    count, height, width, _ = left.shape
    bar = max(28, height // 16) // 2 * 2
    total = 2 * width + GAP
    canvas = Image.new("RGB", (total, bar), BAR)
    draw = ImageDraw.Draw(canvas)
    for x, label in zip((0, width + GAP), labels, strict=True):
        font = font_for(label, width - 16, bar // 2)
        draw.text((x + 8, bar / 2), label, TEXT, font, anchor="lm")
    frames = np.empty((count, height + bar + height % 2, total + total % 2, 3), np.uint8)
    frames[:] = canvas.getpixel((0, 0))
    frames[:, :bar, :total] = np.asarray(canvas)
    frames[:, bar : bar + height, :width] = left
    frames[:, bar : bar + height, width + GAP : total] = right
    return frames


def font_for(label: str, width: int, size: int) -> Any:
    """The largest font up to `size` pixels in which `label` is at most `width` wide."""
    for pixels in range(size, 7, -1):
        font = ImageFont.load_default(pixels)
        if font.getlength(label) <= width:
            return font
    return ImageFont.load_default(8)
