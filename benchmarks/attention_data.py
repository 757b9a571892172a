"""What attention patterns are judged on: q, k and v of known structure, and of a shipped model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel import accelerated
from accel.pipelines import tiny
from accel.sparse_attn import SparseAttention
from accel.sparse_attn.pattern import Place, Routing
from accel.token_grid import TokenGrid

GRID = TokenGrid(8, 16, 16)
HEADS, WIDTH = 4, 64
SHARPNESS = 9.0
"""Logit of a token with itself, where that of tokens far apart is about 0."""
LABELS = 24
PROMPT = "a red circle moving left and a blue square moving right"

QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Sample:
    """One attention call and an earlier one of the same layer, head by head.

    Attributes:
        data: what it is, for the picture.
        layer: number of the layer; 0 for made data.
        grid: where the tokens are.
        before, now: q, k, v (1, S, H, D) of the two calls.
    """

    data: str
    layer: int
    grid: TokenGrid
    before: QKV
    now: QKV


def synthetic(kind: str, grid: TokenGrid = GRID, heads: int = HEADS, seed: int = 0) -> Sample:
    """Random q = k + noise whose products fall with a distance, and values that vary with it too.

    "space": between tokens near in the same frame or the next ones, as of spatial heads; "time":
    between the same places of all frames; "clusters": between tokens of the same of 24 labels,
    which lie in blobs all over the video. The earlier call has the same structure and other noise.

    Raises:
        ValueError: another kind.
    """
    draw = torch.Generator().manual_seed(seed)
    scale = {"space": (0.7, 5.0, 5.0), "time": (30.0, 1.0, 1.0), "clusters": (3.0, 4.0, 4.0)}
    if kind not in scale:
        raise ValueError(f"unknown structure {kind!r}; known: {', '.join(scale)}")
    axes = [torch.arange(n).float() for n in (grid.frames, grid.height, grid.width)]
    place = torch.stack([a.flatten() for a in torch.meshgrid(*axes, indexing="ij")], -1)
    codes, values = [], []
    for _ in range(heads):
        near = _features(place / torch.tensor(scale[kind]), WIDTH, draw)
        if kind == "clusters":
            label = (near @ torch.randn(WIDTH, LABELS, generator=draw)).argmax(-1)
            table = torch.randn(LABELS, WIDTH, generator=draw)
            near = torch.nn.functional.normalize(table, dim=-1)[label]
        codes.append(near)
        values.append(near @ torch.randn(WIDTH, WIDTH, generator=draw))
    code = torch.stack(codes, 1)[None] * math.sqrt(SHARPNESS) * WIDTH**0.25

    def call() -> QKV:
        q, k, v = (torch.randn(code.shape, generator=draw) for _ in range(3))
        return code + 0.6 * q, code + 0.6 * k, torch.stack(values, 1)[None] + 0.5 * v

    return Sample(kind, 0, grid, call(), call())


def _features(x: Tensor, width: int, draw: torch.Generator) -> Tensor:
    """(S, width) features whose products are about exp(-|x - y|^2 / 2) (Rahimi and Recht)."""
    angle = x @ torch.randn(x.shape[-1], width, generator=draw)
    shift = 2 * math.pi * torch.rand(width, generator=draw)
    return (angle + shift).cos() * math.sqrt(2 / width)


def opened(folder: str) -> Any:
    """The pipeline of a folder, in float32."""
    from diffusers import DiffusionPipeline

    absent = tiny.absent(Path(folder))
    return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **absent)


@dataclass(frozen=True)
class Recording:
    """A pattern that leaves attention dense and keeps q, k and v of some steps.

    Attributes:
        steps: which.
        kept: (layer, branch, step) -> grid and q, k, v.
    """

    steps: tuple[int, ...]
    kept: dict[tuple[int, str | None, int], tuple[TokenGrid, QKV]] = field(
        default_factory=dict, compare=False
    )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        step = place.step
        if step is not None and step.index in self.steps:
            self.kept[place.layer, place.branch, step.index] = (
                place.grid,
                (q.clone(), k.clone(), v.clone()),
            )
        return None


def recorded(
    model: str, steps: int = 50, seed: int = 0, folder: str | None = None
) -> Iterator[Sample]:
    """Self-attention of a shipped model: at 40 % of a run and, for what is kept, at 24 %.

    Args:
        folder: where the pipeline is, if not among those that ship.
    """
    pipe = tiny.load(model) if folder is None else opened(folder)
    settings = tiny.call_defaults(model) | {"num_inference_steps": steps, "output_type": "latent"}
    early, late = round(0.24 * steps), round(0.4 * steps)
    recording = Recording((early, late))
    method = SparseAttention(recording, dense_until=0.0, shortest=0, recall_rows=0)
    with accelerated(pipe, method):
        pipe(PROMPT, generator=torch.Generator().manual_seed(seed), **settings)
    for (layer, branch, step), (grid, now) in recording.kept.items():
        if step == late and branch in ("cond", "0"):
            before = recording.kept[layer, branch, early][1]
            yield Sample(model, layer, grid, *(tuple(x[:1] for x in c) for c in (before, now)))  # type: ignore[arg-type]
