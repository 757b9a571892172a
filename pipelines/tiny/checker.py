"""An exact reader of colour, shape, direction and ground from frames made by any model.

Plain image analysis; every constant comes from the geometry and palette of :mod:`.scenes`, none is
fitted to samples of a model. The ground is the median of the border. Objects are the connected
components of what differs from it. A shape is named by the outline of the same area and centre
that overlaps it best, a direction by the fitted line of the centroid over time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from .scenes import CANVAS, COLOURS, DIRECTIONS, GROUNDS, SHAPES, parse, signed_distance

CONTRAST = 0.25
"""Smallest RGB distance from the ground, channels in [0, 1], that counts as object."""
MIN_AREA = 60.0
"""Smallest object in canvas pixels; the smallest drawn has about 140."""
MIN_OVERLAP = 0.85
"""Least intersection over union with an ideal outline for the shape to bear its name."""
MIN_PATH = 8.0
"""Shortest path in canvas pixels that counts as motion; the shortest drawn has 16."""
TOLERANCE = 0.2
"""Largest RGB distance from a named colour; the closest two names are 0.42 apart."""
AGREEMENT = 0.75
"""Share of all frames that must agree on an attribute."""

_AREA = {"circle": np.pi, "square": 4 * 0.87**2, "triangle": 3 * np.sqrt(3.0) * 0.625**2}


@dataclass(frozen=True)
class Seen:
    """One object as read from frames; an attribute that fits no name is None."""

    colour: str | None
    shape: str | None
    direction: str | None
    ground: str | None


@dataclass(frozen=True)
class _Blob:
    colour: str | None
    shape: str | None
    centre: np.ndarray  # x, y in canvas pixels


def _named(rgb: np.ndarray, names: dict[str, tuple[float, float, float]]) -> str | None:
    distance = {name: float(np.linalg.norm(rgb - np.array(c))) for name, c in names.items()}
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] <= TOLERANCE else None


def _shape(cover: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> str | None:
    overlap = {}
    for shape in SHAPES:
        radius = np.sqrt(cover.sum() / _AREA[shape])
        ideal = np.clip(0.5 - signed_distance(shape, dx, dy, radius), 0.0, 1.0)
        overlap[shape] = np.minimum(cover, ideal).sum() / np.maximum(cover, ideal).sum()
    best = max(overlap, key=lambda shape: overlap[shape])
    return best if overlap[best] >= MIN_OVERLAP else None


def _read(frame: np.ndarray) -> tuple[str | None, list[_Blob]]:
    """Ground and objects of one frame (3, H, H)."""
    border = [frame[:, 0], frame[:, -1], frame[:, :, 0], frame[:, :, -1]]
    ground = np.median(np.concatenate(border, axis=1), axis=1)
    away = frame - ground[:, None, None]
    labels, count = ndimage.label(np.linalg.norm(away, axis=0) > CONTRAST)
    scale = frame.shape[-1] / CANVAS
    y, x = np.mgrid[: frame.shape[1], : frame.shape[2]] + 0.5
    blobs = []
    for index in range(1, count + 1):
        region = labels == index
        if region.sum() < MIN_AREA * scale**2:
            continue
        inside = ndimage.binary_erosion(region, iterations=2)
        colour = np.median(frame[:, inside if inside.any() else region], axis=1)
        tint = colour - ground
        near = ndimage.binary_dilation(region, iterations=2) & ((labels == index) | (labels == 0))
        cover = np.einsum("chw,c->hw", away, tint) / float(tint @ tint)
        cover = np.clip(cover, 0.0, 1.0) * near
        centre = np.array([(cover * x).sum(), (cover * y).sum()]) / cover.sum()
        shape = _shape(cover, x - centre[0], y - centre[1])
        blobs.append(_Blob(_named(colour, COLOURS), shape, centre / scale))
    return _named(ground, GROUNDS), blobs


def _agreed(names: list[str | None], frames: int) -> str | None:
    best = max(set(names), key=names.count, default=None)
    return best if names.count(best) >= AGREEMENT * frames else None


def _direction(moments: np.ndarray, centres: np.ndarray, frames: int) -> str | None:
    if len(moments) < max(2, AGREEMENT * frames):
        return None
    path = np.polyfit(moments, centres, 1)[0] * (frames - 1)
    for name, towards in DIRECTIONS.items():
        along = float(path @ np.array(towards))
        if along >= MIN_PATH and along >= 2 * np.abs(path * (np.array(towards) == 0)).sum():
            return name
    return None


def attributes(frames: ArrayLike) -> list[Seen]:
    """Objects seen in a video, or in a single picture (whose objects have no direction).

    The number of objects is the commonest over the frames; the same object is followed from frame
    to frame by nearest centres.

    Args:
        frames: (F, 3, H, H), or (3, H, H) for a picture, values in [0, 1]; array or CPU tensor.

    Raises:
        ValueError: another layout or range.
    """
    video = np.asarray(frames, dtype=np.float64)
    video = video[None] if video.ndim == 3 else video
    if video.ndim != 4 or video.shape[1] != 3 or video.shape[2] != video.shape[3]:
        raise ValueError(f"frames must be (F, 3, H, H) or (3, H, H), got {np.shape(frames)}")
    if not (video.min() >= -1e-3 and video.max() <= 1 + 1e-3):
        raise ValueError(f"values must lie in [0, 1], got {video.min():.3g} to {video.max():.3g}")
    total = len(video)
    read = [_read(frame) for frame in video]
    ground = _agreed([name for name, _ in read], total)
    counts = [len(blobs) for _, blobs in read]
    number = max(set(counts), key=counts.count)
    kept = np.array([moment for moment in range(total) if counts[moment] == number])
    tracks: list[list[_Blob]] = [[blob] for blob in read[kept[0]][1]]
    for moment in kept[1:]:
        blobs = read[moment][1]
        gaps = [[float(np.linalg.norm(t[-1].centre - b.centre)) for b in blobs] for t in tracks]
        rows, columns = linear_sum_assignment(np.array(gaps).reshape(number, number))
        for row, column in zip(rows, columns, strict=True):
            tracks[row].append(blobs[column])
    return [
        Seen(
            _agreed([blob.colour for blob in track], total),
            _agreed([blob.shape for blob in track], total),
            _direction(kept, np.array([blob.centre for blob in track]), total),
            ground,
        )
        for track in tracks
    ]


def adherence(frames: ArrayLike, caption: str) -> tuple[float, bool]:
    """Share of the attributes of ``caption`` that ``frames`` show, and whether all are right.

    Attributes are the ground and, per object, colour, shape and (in a video) direction. Objects are
    matched to those of the caption so that most agree; one too many or too few counts as wrong in
    all of its attributes.
    """
    wanted = parse(caption)
    seen = attributes(frames)
    fields = ["colour", "shape"]
    if any(shape.direction for shape in wanted.shapes):
        fields.append("direction")
    right = [
        [sum(getattr(s, f) == getattr(w, f) for f in fields) for w in wanted.shapes] for s in seen
    ]
    hits = int(bool(seen) and seen[0].ground == wanted.ground)
    if seen:
        matrix = np.array(right)
        hits += int(matrix[linear_sum_assignment(matrix, maximize=True)].sum())
    total = 1 + len(fields) * max(len(wanted.shapes), len(seen))
    return hits / total, hits == total
