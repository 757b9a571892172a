"""Every block: what a kernel computes is then dense attention, in its own precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.method import check_fields

from ..blocks import once
from ..layout import BLOCKS, BlockLayout, uniform
from ..pattern import Place, Routing


@dataclass(frozen=True)
class Full:
    """Leave nothing out: the way to quantised or other dense attention by a kernel of choice.

    `SparseAttention(Full(), kernel="triton_int8", dense_until=0)` computes all attention in INT8;
    `kernel="sageattention"` and other dense packages work in the same way. With kernel="auto" the
    attention of the model itself is called, as no kernel is faster where nothing is left out.

    Args:
        block_q: tokens of a query block, 64 or 128; they come in the order of the model.
        block_k: tokens of a key block, 64 or 128.
    """

    block_q: int = 128
    block_k: int = 128

    def __post_init__(self) -> None:
        check_fields(
            self,
            block_q=(self.block_q in BLOCKS, "64 or 128"),
            block_k=(self.block_k in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        shape = q.shape[0], q.shape[2], q.shape[1], k.shape[1]
        return _routing(shape, self.block_q, self.block_k, q.device)


@once
def _routing(
    shape: tuple[int, int, int, int], block_q: int, block_k: int, device: torch.device
) -> Routing:
    """For (B, H, S_q, S_k)."""
    batch, heads, rows, columns = shape
    q_start, k_start = uniform(rows, block_q, device), uniform(columns, block_k, device)
    blocks = (q_start.shape[-1] - 1, k_start.shape[-1] - 1)
    layout = BlockLayout.from_map(
        torch.ones(batch, heads, *blocks, dtype=torch.bool, device=device),
        q_start,
        k_start,
        block_q,
        block_k,
        seq_q=rows,
        seq_k=columns,
        regular=True,
        share=1.0,
    )
    return Routing(layout)
