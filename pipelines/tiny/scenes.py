"""Scenes of coloured shapes on a coloured ground: sampled, described and drawn by code.

Every shipped tiny model is trained on, and judged by, what this module makes. A scene holds one or
two shapes; a moving scene gives each of them one of four directions. Captions read

    a red circle moving left on a dark background
    a red circle moving left and a blue square moving up on a light background

and, for still pictures, the same without ``moving ...``.

The held-out split is a rule on words alone: a caption whose object phrases, sorted, have a CRC-32
that is a multiple of ten belongs to ``"heldout"`` and is never trained on, in either order of its
objects; every other caption belongs to ``"train"``.
"""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass

import numpy as np

CANVAS = 64
"""Side of the canvas, in pixels, that positions and radii refer to."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.98, 0.85, 0.10),
    "pink": (0.95, 0.35, 0.85),
    "cyan": (0.20, 0.85, 0.95),
}
GROUNDS: dict[str, tuple[float, float, float]] = {
    "dark": (0.07, 0.07, 0.10),
    "light": (0.94, 0.94, 0.92),
    "brown": (0.42, 0.26, 0.14),
    "teal": (0.10, 0.42, 0.42),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

REACH = {"circle": 1.0, "square": 1.24, "triangle": 1.25}  # farthest point, in radii
_PHRASE = re.compile(
    rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?: moving ({'|'.join(DIRECTIONS)}))?"
)
_GROUND = re.compile(rf"(.+) on a ({'|'.join(GROUNDS)}) background")


@dataclass(frozen=True)
class Shape:
    """What a caption says of one object; ``direction`` is None in a still picture."""

    colour: str
    shape: str
    direction: str | None = None


@dataclass(frozen=True)
class Placed:
    """A shape with its place: first centre (``x``, ``y``), ``radius`` and path length in pixels."""

    what: Shape
    x: float
    y: float
    radius: float
    travel: float

    def centres(self, frames: int) -> np.ndarray:
        """Centres over ``frames`` evenly spaced moments, (frames, 2) as x, y in canvas pixels."""
        step = np.array(DIRECTIONS.get(self.what.direction or "", (0, 0)), dtype=np.float32)
        moment = np.linspace(0.0, 1.0, frames, dtype=np.float32)[:, None]
        return np.array([self.x, self.y], dtype=np.float32) + moment * self.travel * step


@dataclass(frozen=True)
class Scene:
    """A ground and the one or two placed shapes on it."""

    ground: str
    objects: tuple[Placed, ...]


@dataclass(frozen=True)
class Described:
    """A caption taken back to attributes."""

    ground: str
    shapes: tuple[Shape, ...]


def describe(ground: str, shapes: tuple[Shape, ...]) -> str:
    """The caption of ``shapes``, named in the order given, on ``ground``."""
    phrases = [
        f"a {s.colour} {s.shape}" + (f" moving {s.direction}" if s.direction else "")
        for s in shapes
    ]
    return f"{' and '.join(phrases)} on a {ground} background"


def caption(scene: Scene) -> str:
    """The caption of ``scene``."""
    return describe(scene.ground, tuple(placed.what for placed in scene.objects))


def parse(text: str) -> Described:
    """Attributes named by a caption, the inverse of :func:`describe`.

    Raises:
        ValueError: the sentence is not of the form that :func:`caption` writes.
    """
    whole = _GROUND.fullmatch(text.strip())
    phrases = [_PHRASE.fullmatch(p) for p in whole[1].split(" and ")] if whole else []
    if whole is None or not 1 <= len(phrases) <= 2 or None in phrases:
        raise ValueError(
            f"cannot read the caption {text!r}; expected for example "
            "'a red circle moving left on a dark background'"
        )
    return Described(whole[2], tuple(Shape(p[1], p[2], p[3]) for p in phrases if p))


def split_of(text: str) -> str:
    """``"heldout"`` or ``"train"``, by the rule at the top of this module."""
    described = parse(text)
    ordered = sorted(described.shapes, key=lambda s: (s.colour, s.shape, s.direction or ""))
    code = zlib.crc32(describe(described.ground, tuple(ordered)).encode())
    return "heldout" if code % 10 == 0 else "train"


def _place(rng: np.random.Generator, what: Shape, alone: bool) -> Placed:
    radius = rng.uniform(10.0, 13.0) if alone else rng.uniform(8.5, 10.0)
    travel = 0.0
    if what.direction:
        travel = rng.uniform(18.0, 24.0) if alone else rng.uniform(16.0, 20.0)
    margin = radius * REACH[what.shape] + 1.0
    low, high = np.full(2, margin), np.full(2, CANVAS - margin)
    for axis, sign in enumerate(DIRECTIONS.get(what.direction or "", (0, 0))):
        low[axis] += travel * (sign < 0)
        high[axis] -= travel * (sign > 0)
    x, y = rng.uniform(low, high)
    return Placed(what, float(x), float(y), float(radius), float(travel))


def _apart(a: Placed, b: Placed) -> bool:
    reach = a.radius * REACH[a.what.shape] + b.radius * REACH[b.what.shape]
    distance = np.linalg.norm(a.centres(17) - b.centres(17), axis=1)
    return bool(distance.min() > reach + 3.0)


def place(rng: np.random.Generator, described: Described) -> Scene:
    """A random scene that fits the description: inside the frame, shapes at least 3 px apart."""
    while True:
        placed = tuple(_place(rng, s, len(described.shapes) == 1) for s in described.shapes)
        if len(placed) == 1 or _apart(*placed):
            return Scene(described.ground, placed)


def sample_scene(rng: np.random.Generator, moving: bool = True, split: str = "train") -> Scene:
    """A random scene whose caption lies in ``split`` ("train" or "heldout").

    One shape in three scenes of four, two of different colours in the fourth.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', got {split!r}")
    while True:
        count = 2 if rng.random() < 0.25 else 1
        colours = rng.choice(list(COLOURS), size=count, replace=False)
        shapes = tuple(
            Shape(
                str(colour),
                str(rng.choice(SHAPES)),
                str(rng.choice(list(DIRECTIONS))) if moving else None,
            )
            for colour in colours
        )
        ground = str(rng.choice(list(GROUNDS)))
        if split_of(describe(ground, shapes)) == split:
            return place(rng, Described(ground, shapes))


def sample_scenes(
    rng: np.random.Generator,
    count: int,
    moving: bool = True,
    split: str = "train",
    pairs: bool = False,
) -> list[Scene]:
    """``count`` scenes as :func:`sample_scene` draws them; with ``pairs`` those of two objects."""
    drawn = (sample_scene(rng, moving, split) for _ in itertools.count())
    wanted = (scene for scene in drawn if len(scene.objects) == 2 or not pairs)
    return list(itertools.islice(wanted, count))


def signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to the outline (negative inside), near the outline exact to first order."""
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.87 * radius
    slope = np.abs(dx) * (np.sqrt(3.0) / 2.0) - dy / 2.0
    return np.maximum(slope, dy) - 0.625 * radius


def render(scene: Scene, frames: int = 17, size: int = CANVAS) -> np.ndarray:
    """Draw ``scene`` with antialiased edges.

    Args:
        scene: what to draw.
        frames: number of frames over which every shape runs its whole path; 1 draws the start.
        size: side of the square picture in pixels.

    Returns:
        float32 (frames, 3, size, size) in [0, 1].
    """
    scale = size / CANVAS
    grid = (np.arange(size, dtype=np.float32) + 0.5) / scale
    ground = np.array(GROUNDS[scene.ground], dtype=np.float32)
    video = np.broadcast_to(ground[None, :, None, None], (frames, 3, size, size)).copy()
    for placed in scene.objects:
        centre = placed.centres(frames)
        dx = grid[None, None, :] - centre[:, 0, None, None]
        dy = grid[None, :, None] - centre[:, 1, None, None]
        distance = signed_distance(placed.what.shape, dx, dy, placed.radius) * scale
        cover = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)[:, None]
        colour = np.array(COLOURS[placed.what.colour], dtype=np.float32)[None, :, None, None]
        video += cover * (colour - video)
    return video
