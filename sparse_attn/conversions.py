"""Layouts in the forms that other block-sparse kernels read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layout import BlockLayout, per_layout, uniform


@per_layout
def to_flex(layout: BlockLayout) -> Any:
    """A FlexAttention `BlockMask`; its `mask_mod` says the same, since eager code reads that alone.

    Raises:
        ValueError: the blocks are not uniform.
    """
    from torch.nn.attention.flex_attention import BlockMask

    lists = to_fa4(layout)
    mapped, keys = layout.dense(), layout.seq_k
    block_q, block_k = layout.block_q, layout.block_k

    def attended(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
        return mapped[b, h, q // block_q, kv // block_k] & (kv < keys)

    return BlockMask.from_kv_blocks(
        lists["mask_block_cnt"],
        lists["mask_block_idx"],
        lists["full_block_cnt"],
        lists["full_block_idx"],
        BLOCK_SIZE=(layout.block_q, layout.block_k),
        mask_mod=attended,
        seq_lengths=(layout.seq_q, layout.seq_k),
    )


def to_fa4(layout: BlockLayout) -> dict[str, Tensor]:
    """Counts (B, H, nQ) and indices (B, H, nQ, nK), int32, of partial and of full blocks.

    Raises:
        ValueError: the blocks are not uniform.
    """
    check_uniform(layout)
    mapped = layout.dense()
    short = layout.k_start.diff(dim=-1)[:, :, None] < layout.block_k
    partial, full = padded(mapped & short), padded(mapped & ~short)
    return {
        "mask_block_cnt": partial[0],
        "mask_block_idx": partial[1],
        "full_block_cnt": full[0],
        "full_block_idx": full[1],
    }


def to_bsr(layout: BlockLayout) -> tuple[Tensor, Tensor]:
    """(indptr, indices) of all query blocks of all heads as one block-sparse matrix.

    The heads of the batch lie one after another, on the rows and on the columns: head n has rows
    n * nQ and columns n * nK onwards. Indices ascend in each row. Every block is full, as the form
    has no masks.

    Returns:
        (B * H * nQ + 1,) int32 and (capacity,) int32; entries from `indptr[-1]` on are unused.

    Raises:
        ValueError: the blocks are not uniform, or the last one is not full.
    """
    check_uniform(layout)
    for name, tokens, block in (
        ("queries", layout.seq_q, layout.block_q),
        ("keys", layout.seq_k, layout.block_k),
    ):
        if tokens % block:
            raise ValueError(
                f"{tokens} {name} are no multiple of blocks of {block}, and a block-sparse matrix "
                f"has no mask for the rest of the last one: what fills it up would be attended to"
            )
    mapped = layout.dense().flatten(0, 1)
    heads, rows, columns = mapped.shape
    count, index = padded(mapped)
    index = index + torch.arange(heads, device=index.device, dtype=torch.int32)[:, None, None] * (
        columns
    )
    slot = torch.arange(columns, device=index.device)
    place = layout.row_ptr[:-1].view(heads, rows, 1) + slot
    place = torch.where(slot < count[..., None], place, layout.col.numel())
    indices = torch.zeros(layout.col.numel() + 1, dtype=torch.int32, device=index.device)
    indices.scatter_(0, place.flatten().long(), index.to(torch.int32).flatten())
    return layout.row_ptr, indices[:-1]


def padded(mapped: Tensor) -> tuple[Tensor, Tensor]:
    """Number of true entries of every row, and their places first and ascending, both int32."""
    count = mapped.sum(-1, dtype=torch.int32)
    order = (~mapped).to(torch.uint8).argsort(dim=-1, stable=True).to(torch.int32)
    return count, order.contiguous()


def check_uniform(layout: BlockLayout) -> None:
    """Raise ValueError unless every block but the last is full.

    Starts are read on the host only of a layout whose builder did not say (`regular`), and once.
    """
    regular = _regular(layout) if layout.regular is None else layout.regular
    for name, start, tokens, block in (
        ("query", layout.q_start, layout.seq_q, layout.block_q),
        ("key", layout.k_start, layout.seq_k, layout.block_k),
    ):
        shared = start.shape[:2] == (1, 1) and start.shape[-1] - 1 == -(-tokens // block)
        if not (shared and regular):
            raise ValueError(
                f"{name} blocks vary in size ({start.shape[-1] - 1} for {tokens} tokens, largest "
                f"{block}), which this form cannot say; use a kernel that reads the layout itself"
            )


@per_layout
def _regular(layout: BlockLayout) -> bool:
    return all(
        torch.equal(start, uniform(tokens, block, start.device))
        for start, tokens, block in (
            (layout.q_start, layout.seq_q, layout.block_q),
            (layout.k_start, layout.seq_k, layout.block_k),
        )
    )
