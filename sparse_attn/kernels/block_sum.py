"""block_sum: how much attention falls on each block, given the log-sum of every row."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**25
"""Scores held at once."""


def block_sum(
    q: Tensor, k: Tensor, lse: Tensor, q_start: Tensor, k_start: Tensor, scale: float
) -> Tensor:
    """Sums of exp(scale q_i k_j - lse_i) over the pairs of query and key blocks.

    With the `lse` of full attention on the same q and k, every row of blocks sums to its number of
    queries. Plain torch, on the device of q; a matrix product and no more memory than `CHUNK`.

    Args:
        q: (B, S_q, H, D).
        k: (B, S_k, H_k, D), H a multiple of H_k.
        lse: (B, H, S_q) natural logarithm; rows of -inf count as 0.
        q_start: (B or 1, H or 1, nQ + 1), or (nQ + 1,), first tokens of the blocks.
        k_start: the same of keys.

    Returns:
        (B, H, nQ, nK) float32, float64 of float64.
    """
    batch, rows, heads, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_start, k_start = (s if s.ndim == 3 else s[None, None] for s in (q_start, k_start))
    key = k.repeat_interleave(heads // k.shape[2], 2).transpose(1, 2).to(dtype)
    query = q.transpose(1, 2).to(dtype)
    empty = lse == -torch.inf
    base = lse.to(dtype).masked_fill(empty, 0)
    edges = k_start.long().expand(batch, heads, -1)[:, :, None]
    block = torch.arange(q_start.shape[-1] - 1, device=q.device)
    sums = query.new_zeros(batch, heads, len(block), k_start.shape[-1] - 1)
    step = max(1, CHUNK // (batch * heads * k.shape[1]))
    for at in range(0, rows, step):
        part = slice(at, min(at + step, rows))
        weights = (query[:, :, part] @ key.mT * scale - base[:, :, part, None]).exp()
        weights = weights.masked_fill(empty[:, :, part, None], 0)
        columns = torch.segment_reduce(
            weights,
            "sum",
            offsets=edges.expand(-1, -1, weights.shape[2], -1).contiguous(),
            axis=3,
            unsafe=True,  # the checks would wait for the device
        )
        token = torch.arange(part.start, part.stop, device=q.device)
        starts, ends = q_start[..., :-1, None], q_start[..., 1:, None]
        member = (starts <= token) & (token < ends)  # (B or 1, H or 1, nQ, rows of the part)
        sums += member.to(dtype) @ columns
    return sums
