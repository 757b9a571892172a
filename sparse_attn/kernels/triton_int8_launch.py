"""Launches the quantised attention of `triton_int8`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout import BlockLayout
from .triton_launch import (
    by_descriptors,
    choose,
    constants,
    copied,
    fitting,
    interpreted,
    longest_first,
    split,
    starts,
    strides,
    target_of,
    why_no_launch,
)
from .triton_targets import padded

FP8_LARGEST = 448.0
FP8_TARGETS = ("sm_89", "sm_90", "sm_100")


@dataclass(frozen=True)
class TritonInt8:
    """INT8 products of queries with smoothed keys, and FP8 or plain ones with values.

    Lossy: outputs are off by about 1 % where plain float16 is off by 0.1 %. No gradient.

    Args:
        fp8: values in FP8; else in the type they come in.
    """

    fp8: bool = False
    unproven = "it has never been launched on a card"

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        if reason := why_no_launch(q):
            return reason
        if self.fp8 and not interpreted() and target_of(q.device) not in FP8_TARGETS:
            return f"FP8 needs one of {', '.join(FP8_TARGETS)}; triton_int8 does without"
        if layout.k_start.shape[1] > 1:
            return "key blocks differ from head to head, and its scales are per block of all heads"
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        """As every kernel.

        Raises:
            ValueError: a gradient is asked for.
        """
        if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise ValueError("quantised attention has no gradient; train with kernel='triton'")
        from .triton_int8 import quantised_forward

        asked = q.shape[-1]
        q, k, v = fitting(q), fitting(k), fitting(v)
        batch, seq, heads, head = q.shape
        group = heads // k.shape[2]
        mean = k.nanmean(1, dtype=torch.float32)  # a key that is left out may be NaN
        mean = torch.where(mean.isnan(), 0, mean)
        query, q_scale = quantised(q, None, layout.q_start, layout.block_q)
        key, k_scale = quantised(k, mean, layout.k_start, layout.block_k)
        value, v_scale = channels(v) if self.fp8 else (v, q_scale)
        kernel = "int8_fp8" if self.fp8 else "int8"
        tiles = choose(kernel, q, layout.block_q, layout.block_k)
        o = torch.empty(batch, seq, heads, head, dtype=q.dtype, device=q.device)
        lse = torch.empty(batch, heads, seq, dtype=torch.float32, device=q.device)
        tma = by_descriptors(q)
        split_q, split_k = split(layout.block_q, tiles.m), split(layout.block_k, tiles.n)
        quantised_forward[(batch * heads * layout.blocks_q << split_q,)](
            query,
            copied(key, tiles.n, tma),
            copied(value, tiles.n, tma),
            o,
            lse,
            q_scale,
            k_scale,
            v_scale,
            layout.row_ptr,
            layout.col,
            layout.partial,
            longest_first(layout),
            layout.q_start,
            layout.k_start,
            *strides(query, key, value, o),
            *starts(layout.q_start, layout.k_start),
            heads,
            group,
            layout.blocks_q,
            layout.blocks_k,
            seq,
            float(scale),
            split_q,
            split_k,
            FP8=self.fp8,
            **constants(q, tiles, tma),
        )
        # what smoothing took from every score of a row
        taken = torch.einsum("bshd,bhd->bhs", q.float(), mean.repeat_interleave(group, 1))
        lse = torch.where(lse == -torch.inf, lse, lse + scale * taken)
        return o[..., :asked], lse


def quantised(x: Tensor, mean: Tensor | None, edges: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(B, S, H, D) INT8 of x - mean and its scales (B, H, blocks) float32, one per block.

    `x` is as `fitting` makes it, `mean` (B, H, D) float32 or none.
    """
    from .triton_int8 import quantise

    batch, seq, heads, head = x.shape
    blocks = edges.shape[-1] - 1
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(batch, heads, blocks, dtype=torch.float32, device=x.device)
    if mean is None:
        mean = torch.zeros(batch, heads, head, dtype=torch.float32, device=x.device)
    tiles = choose("quantise", x, block, block)
    quantise[(batch * heads * blocks,)](
        x,
        mean,
        out,
        scales,
        edges,
        *strides(x),
        *starts(edges),
        heads,
        blocks,
        seq,
        ROWS=tiles.m,
        DIM=padded(head),
        HEAD=head,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out, scales


def channels(v: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, H, D) e4m3 and its scales (B, H, D) float32, one per channel; NaN stays NaN."""
    largest = torch.where(v.isnan(), 0, v).abs().amax(1)
    scale = largest.float().clamp(min=1e-12) / FP8_LARGEST
    found: Any = (v.float() / scale[:, None]).to(torch.float8_e4m3fn)
    return found, scale
