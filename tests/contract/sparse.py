"""Rows of sparse attention: blocks of 40 to 192 tokens, so the settings are extreme."""

from __future__ import annotations

from accel.sparse_attn import SlidingTile, SparseAttention

from .row import Row

WHOLE = SparseAttention(SlidingTile((99, 99, 99)), shortest=1)

SPARSE = (
    Row(
        SparseAttention(SlidingTile((1, 1, 1), (1, 2, 2)), dense_until=0.2, shortest=1),
        WHOLE,
        ("wan22", "wan_i2v", "flux", "ltx", "hunyuan_video", "hunyuan_video15", "mochi", "sd3"),
        ("wan", "cogvideox"),
        frozen="sparse",
        spends=0.95,
    ),
    Row(
        SparseAttention(SlidingTile((1, 1, 1), (1, 4, 8)), dense_until=0.0, shortest=20),
        WHOLE,
        ("animatediff",),
        (),
        frozen="sparse",
    ),
)
