"""BlockLayout: which key blocks every query block attends to, as lists a kernel can walk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

BLOCKS = (64, 128)
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """Rows of key blocks, one per batch entry, head and query block, in that order.

    Blocks may hold fewer tokens than the largest, or none: ragged tails and tiles need no padding.
    All tensors lie on one device; building and using a layout reads nothing on the host.

    Attributes:
        row_ptr: (B * H * nQ + 1,) int32 offsets into `col`.
        col: (capacity,) int32 key-block indices; in each row first the *partial* blocks, which hold
            fewer than `block_k` tokens, then the full ones, ascending in each part. Entries from
            `row_ptr[-1]` on are unused.
        partial: (B * H * nQ,) int32, how many leading entries of a row are partial.
        q_start: (B or 1, H or 1, nQ + 1) int32; query block i is tokens q_start[i] to
            q_start[i + 1].
        k_start: (B or 1, H or 1, nK + 1) int32, the same of keys.
        block_q: most tokens in a query block, 64 or 128.
        block_k: most tokens in a key block, 64 or 128.
        batch, heads, seq_q, seq_k: B, H, S_q, S_k.
        regular: whether all blocks but the last are full, of queries and of keys; None where who
            built it did not say.
        share: share of all pairs that is computed at least, roughly, as far as it was known without
            looking at tokens; None where it was not.
        covered: whether every key lies in a block; False where a padding mask hides some.
    """

    row_ptr: Tensor
    col: Tensor
    partial: Tensor
    q_start: Tensor
    k_start: Tensor
    block_q: int
    block_k: int
    batch: int
    heads: int
    seq_q: int
    seq_k: int
    regular: bool | None = None
    share: float | None = None
    covered: bool = True

    @property
    def blocks_q(self) -> int:
        """Query blocks, nQ."""
        return self.q_start.shape[-1] - 1

    @property
    def blocks_k(self) -> int:
        """Key blocks, nK."""
        return self.k_start.shape[-1] - 1

    @classmethod
    def from_map(
        cls,
        map: Tensor,
        q_start: Tensor,
        k_start: Tensor,
        block_q: int,
        block_k: int,
        *,
        seq_q: int,
        seq_k: int,
        capacity: int | None = None,
        regular: bool | None = None,
        share: float | None = None,
        covered: bool = True,
    ) -> BlockLayout:
        """Lists from a map, by row counts, a running sum and a scatter on its device.

        Args:
            map: (B, H, nQ, nK) bool; empty key blocks are left out whatever it says.
            q_start, k_start: (B or 1, H or 1, n + 1), or (n + 1,), first tokens of the blocks.
            seq_q, seq_k: tokens in all, S_q and S_k; the last entries of the starts.
            capacity: length of `col`, at least the number of entries; by default that of a full
                map. Patterns that know their density save memory by it.
            regular, share, covered: see the attributes.

        Raises:
            ValueError: block sizes or shapes that do not fit.
        """
        q_start, k_start = (_starts(s, map.device) for s in (q_start, k_start))
        batch, heads, rows, columns = map.shape
        if block_q not in BLOCKS or block_k not in BLOCKS:
            raise ValueError(f"blocks are of 64 or 128 tokens, got {block_q} and {block_k}")
        if (q_start.shape[-1], k_start.shape[-1]) != (rows + 1, columns + 1):
            raise ValueError(
                f"a map of {rows} x {columns} blocks needs {rows + 1} and {columns + 1} starts, "
                f"got {q_start.shape[-1]} and {k_start.shape[-1]}"
            )
        size = k_start.diff(dim=-1)[:, :, None]
        kept = map & (size > 0)
        short = kept & (size < block_k)
        partial = short.sum(-1, dtype=torch.int32)
        count = kept.sum(-1, dtype=torch.int32)
        row_ptr = torch.zeros(count.numel() + 1, dtype=torch.int32, device=map.device)
        torch.cumsum(count.flatten(), 0, dtype=torch.int32, out=row_ptr[1:])
        full = kept & ~short
        within = torch.where(
            short,
            short.cumsum(-1, dtype=torch.int32),
            full.cumsum(-1, dtype=torch.int32) + partial[..., None],
        )
        capacity = map.numel() if capacity is None else capacity
        place = row_ptr[:-1].view(batch, heads, rows, 1) + within - 1
        place = torch.where(kept, place, capacity).clamp_(max=capacity)
        indices = torch.arange(columns, dtype=torch.int32, device=map.device).expand(map.shape)
        col = torch.zeros(capacity + 1, dtype=torch.int32, device=map.device)
        col.scatter_(0, place.flatten().long(), indices.reshape(-1))
        return cls(
            row_ptr,
            col[:-1],
            partial.flatten(),
            q_start,
            k_start,
            block_q,
            block_k,
            batch,
            heads,
            seq_q,
            seq_k,
            regular,
            share,
            covered,
        )

    def dense(self) -> Tensor:
        """(B, H, nQ, nK) bool map."""
        rows = self.row_ptr.numel() - 1
        device = self.col.device
        slots = torch.arange(self.col.numel(), dtype=torch.int32, device=device)
        row = torch.searchsorted(self.row_ptr[1:], slots, right=True).clamp_(max=rows)
        flat = torch.zeros((rows + 1) * self.blocks_k, dtype=torch.bool, device=device)
        used = slots < self.row_ptr[-1]
        at = torch.where(used, row * self.blocks_k + self.col, rows * self.blocks_k)
        flat[at] = True
        found = flat[: rows * self.blocks_k]
        return found.view(self.batch, self.heads, self.blocks_q, self.blocks_k)

    def mask(self) -> Tensor:
        """(B, H, S_q, S_k) bool, by tokens: for the reference kernel and for tests."""
        return self.rows(torch.arange(self.seq_q, device=self.col.device))

    def rows(self, at: Tensor) -> Tensor:
        """(B, H, R, S_k) bool: which keys the queries at positions `at` (R,) attend to."""
        q_block = self._block_of(self.q_start, self.seq_q)[..., at]
        k_block = self._block_of(self.k_start, self.seq_k)
        inside = k_block < self.blocks_k
        k_block = k_block.clamp(max=self.blocks_k - 1)
        rows = self.dense().gather(2, q_block[..., None].expand(-1, -1, -1, self.blocks_k))
        found = rows.gather(3, k_block[:, :, None].expand(-1, -1, len(at), -1))
        return found & inside[:, :, None]

    def masked(self, valid: Tensor) -> tuple[BlockLayout, Tensor]:
        """This layout without keys that a mask hides, and the order of keys it then stands for.

        The keys that stay come first, in the order they had, so blocks shrink and stay whole.

        Args:
            valid: (B, S_k) or (B, H_k, S_k) bool, in the order of this layout's keys.

        Returns:
            The layout, and (B, H_k or 1, S_k) long, the key at every position.
        """
        valid = valid[:, None] if valid.ndim == 2 else valid
        order = (~valid).to(torch.uint8).argsort(dim=-1, stable=True)
        before = torch.nn.functional.pad(valid.cumsum(-1, dtype=torch.int32), (1, 0))
        heads = 1 if valid.shape[1] == self.k_start.shape[1] == 1 else self.heads
        before = before.repeat_interleave(heads // before.shape[1], 1)
        start = before.gather(2, self.k_start.long().expand(self.batch, heads, -1))
        layout = BlockLayout.from_map(
            self.dense(),
            self.q_start,
            start,
            self.block_q,
            self.block_k,
            seq_q=self.seq_q,
            seq_k=self.seq_k,
            capacity=self.col.numel(),
            regular=False,
            share=self.share,
            covered=False,
        )
        return layout, order

    def _block_of(self, start: Tensor, tokens: int) -> Tensor:
        """(B, H, tokens) long: the block of every token."""
        at = torch.arange(tokens, dtype=torch.int32, device=start.device)
        shape = (*start.shape[:2], tokens)
        found = torch.searchsorted(
            start[..., 1:].contiguous(), at.expand(shape).contiguous(), right=True
        )
        return found.expand(self.batch, self.heads, -1)

    def density(self) -> Tensor:
        """() float32: pairs of tokens attended over all pairs."""
        return self.head_density().mean()

    def head_density(self) -> Tensor:
        """(B, H) float32: the same of every batch entry and head."""
        q_size, k_size = (s.diff(dim=-1).float() for s in (self.q_start, self.k_start))
        keys = (self.dense().float() * k_size[:, :, None]).sum(-1)
        return (keys * q_size).sum(-1) / (float(self.seq_q) * self.seq_k)

    def to_flex(self) -> Any:
        """A `torch.nn.attention.flex_attention.BlockMask`, of uniform blocks only."""
        from .conversions import to_flex

        return to_flex(self)

    def to_fa4(self) -> dict[str, Tensor]:
        """Block-sparse tensors of flash-attention 4, of uniform blocks only."""
        from .conversions import to_fa4

        return to_fa4(self)

    def to_bsr(self) -> tuple[Tensor, Tensor]:
        """(indptr, indices) for FlashInfer's block-sparse wrapper, heads along one diagonal."""
        from .conversions import to_bsr

        return to_bsr(self)


def per_layout(build: Callable[[BlockLayout], T]) -> Callable[[BlockLayout], T]:
    """Keeps what is built from a layout as long as the layout; it must not hold the layout."""
    known: WeakKeyDictionary[BlockLayout, T] = WeakKeyDictionary()

    @functools.wraps(build)
    def kept(layout: BlockLayout) -> T:
        if layout not in known:
            known[layout] = build(layout)
        return known[layout]

    return kept


def uniform(tokens: int, block: int, device: torch.device | str | None = None) -> Tensor:
    """(1, 1, n + 1) int32 starts of blocks of `block` tokens, the last one ragged."""
    count = -(-tokens // block)
    starts = torch.arange(count + 1, dtype=torch.int32, device=device) * block
    return starts.clamp_(max=tokens)[None, None]


def _starts(starts: Tensor, device: torch.device) -> Tensor:
    starts = starts.to(device=device, dtype=torch.int32)
    return starts if starts.ndim == 3 else starts[None, None]
