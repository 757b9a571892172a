"""Ways of computing one attention that `attention_gpu` times: dense ones and block-sparse ones."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from accel.sparse_attn.kernels import KERNELS, TOOLS
from accel.sparse_attn.layout import BlockLayout, uniform
from accel.sparse_attn.pattern import Pattern, Place
from accel.sparse_attn.patterns import (
    VSA,
    AdaSpa,
    AttentionTile,
    DraftAttention,
    Jenga,
    Radial,
    SlidingTile,
    SpargeAttn,
    SparseVideoGen,
    SparseVideoGen2,
    XAttention,
)
from accel.token_grid import TokenGrid

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
BLOCK = 128
EXACT = (
    "SDPA flash",
    "SDPA cuDNN",
    "FlashAttention 2",
    "FlashAttention 3",
    "FlashAttention 4",
    "xformers",
    "flex",
)
"""Dense attention that is right up to the rounding of its dtype."""
LOSSY = ("SageAttention",)
"""Dense attention that quantises: no bar for kernels that do not."""
PACKAGES = {
    "FlashAttention 2": "flash_attn",
    "xformers": "xformers",
    "SageAttention": "sageattention",
}


@dataclass(frozen=True)
class Shape:
    """One attention: frames, rows and columns of tokens, text after them, heads and their size."""

    frames: int
    height: int
    width: int
    text: int
    heads: int
    head: int

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width + self.text

    def qkv(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """(1, S, H, D) each, random and the same every time."""
        torch.manual_seed(0)
        size = (1, self.tokens, self.heads, self.head)
        return tuple(torch.randn(size, device=device, dtype=dtype) for _ in range(3))

    def place(self) -> Place:
        grid = TokenGrid(self.frames, self.height, self.width, 0, self.text)
        return Place(0, 1, 0.5, None, None, grid, {}, **TOOLS["triton"])


SHAPES = {
    "Wan 1.3B 480p": Shape(21, 30, 52, 0, 12, 128),
    "CogVideoX 5B": Shape(13, 30, 45, 226, 48, 64),
    "CogVideoX 2B": Shape(13, 30, 45, 226, 30, 64),
    "HunyuanVideo 720p": Shape(33, 45, 80, 0, 24, 128),
}


def parse(text: str) -> Shape:
    """A named shape, or frames x height x width x heads x head size such as `2x8x8x2x64`."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        frames, height, width, heads, head = map(int, text.split("x"))
    except ValueError:
        known = ", ".join(SHAPES)
        raise SystemExit(f"unknown shape {text!r}; known: {known}; or 2x8x8x2x64") from None
    return Shape(frames, height, width, 0, heads, head)


def builders(shape: Shape) -> dict[str, Pattern]:
    """Every pattern, set to keep about a quarter of random q, k and v, in which all is alike.

    Clusters are no smaller than 32 tokens, whatever the shape.
    """
    most = max(2, shape.tokens // 32)
    clusters = SparseVideoGen2(min(300, most), min(1000, most), 0.25)
    return {
        "AdaSpa": AdaSpa(0.75),
        "AttentionTile": AttentionTile(2),
        "DraftAttention": DraftAttention(0.25),
        "Jenga": Jenga(0.75),
        "Radial": Radial(0.2),
        "SlidingTile": SlidingTile((3, 3, 3)),
        "SpargeAttn": SpargeAttn(None, 0.25, -0.1),
        "SparseVideoGen": SparseVideoGen(0.25),
        "SparseVideoGen2": clusters,
        "SVG-EAR": replace(clusters, compensate=True, density=0.25),
        "VSA": VSA(0.75),
        "XAttention": XAttention(0.25, 16),
    }


def dense(name: str, q: Tensor) -> Attention:
    """One of `EXACT` and `LOSSY` for tensors (B, S, H, D) like `q`; a call raises where it cannot.

    Raises:
        ValueError: a package that is not installed, does not work, or does not take such tensors.
    """
    backends = {
        "SDPA flash": SDPBackend.FLASH_ATTENTION,
        "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    }
    if name in PACKAGES:
        layout = random_layout(q, 1.0, BLOCK)
        if reason := KERNELS[PACKAGES[name]].why_not(q, layout):
            raise ValueError(reason)
        return over(PACKAGES[name], layout)
    if name == "FlashAttention 3":
        third = importlib.import_module("flash_attn_interface").flash_attn_func
        return lambda q, k, v: _first(third(q, k, v))
    if name == "FlashAttention 4":
        fourth = importlib.import_module("flash_attn.cute").flash_attn_func
        return lambda q, k, v: _first(fourth(q, k, v))
    if name == "flex":
        flex = _flex(q.device.type)
        return lambda q, k, v: flex(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backends[name]):
            heads = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(*heads).transpose(1, 2)

    return sdpa


def _first(found: Any) -> Tensor:
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out


@functools.cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def random_layout(q: Tensor, density: float, block: int) -> BlockLayout:
    """Uniform blocks; in every row of every head the same number of them, at random."""
    batch, tokens, heads, _ = q.shape
    starts = uniform(tokens, block, q.device)
    count = starts.shape[-1] - 1
    kept = max(1, round(density * count))
    draw = torch.Generator(q.device).manual_seed(1)
    scores = torch.rand(batch, heads, count, count, generator=draw, device=q.device)
    map = torch.zeros_like(scores, dtype=torch.bool)
    map.scatter_(-1, scores.topk(kept, -1).indices, True)
    return BlockLayout.from_map(
        map, starts, starts, block, block, seq_q=tokens, seq_k=tokens, capacity=int(map.sum())
    )


def over(kernel: str, layout: BlockLayout) -> Attention:
    """A kernel over a layout; the layout is built before, as it is in a model at most steps."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return KERNELS[kernel].attend(q, k, v, layout, q.shape[-1] ** -0.5)[0]

    return call


def clock(
    call: Callable[[], object], device: str, seconds: float = 0.3, least: int = 3
) -> dict[str, float]:
    """Median and spread of the milliseconds of a call, after one to warm up."""
    call()
    found: list[float] = []
    start = time.perf_counter()
    while len(found) < least or (time.perf_counter() - start < seconds and len(found) < 100):
        found.append(_once(call, device))
        if device == "cpu":
            break
    low, middle, high = np.percentile(found, (25, 50, 75))
    return {"ms": float(middle), "ms_low": float(low), "ms_high": float(high), "runs": len(found)}


def _once(call: Callable[[], object], device: str) -> float:
    if device != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    call()
    after.record()
    torch.cuda.synchronize()
    return float(before.elapsed_time(after))


def error(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout | None, rows: int = 64
) -> float:
    """Relative L2 error of `rows` queries of two heads against float32 with the same mask."""
    off, size = 0.0, 0.0
    at = torch.linspace(0, q.shape[1] - 1, rows, device=q.device).long()
    for h in {0, q.shape[2] - 1}:
        scores = q[0, at, h].float() @ k[0, :, h].float().T * q.shape[-1] ** -0.5
        if layout is not None:
            edges = layout.k_start[0, h % layout.k_start.shape[1]]
            row_edges = layout.q_start[0, h % layout.q_start.shape[1], 1:]
            of_row = torch.searchsorted(row_edges, at.int(), right=True)
            kept = layout.dense()[0, h, of_row]
            wide = torch.repeat_interleave(kept, edges.diff(), 1)
            scores = scores.masked_fill(~wide, -torch.inf)
        true = scores.softmax(-1).nan_to_num(0) @ v[0, :, h].float()
        off += float((out[0, at, h].float() - true).square().sum())
        size += float(true.square().sum())
    return float((off / max(size, 1e-30)) ** 0.5)
