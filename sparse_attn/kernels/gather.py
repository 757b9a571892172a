"""Portable torch: the key blocks of each query block side by side, then ordinary attention."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout


class Gather:
    """One attention per query block; reads the layout on the host, so meant for the CPU."""

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        group = q.shape[2] // k.shape[2]
        out = torch.zeros_like(q)
        lse = q.new_full(
            (q.shape[0], q.shape[2], q.shape[1]),
            -torch.inf,
            dtype=torch.promote_types(q.dtype, torch.float32),
        )
        ptr, col = layout.row_ptr.tolist(), layout.col.tolist()
        shape = (layout.batch, layout.heads, -1)
        q_start, k_start = (s.expand(shape).tolist() for s in (layout.q_start, layout.k_start))
        row = 0
        for b in range(layout.batch):
            for h in range(layout.heads):
                queries, keys = q_start[b][h], k_start[b][h]
                for i in range(layout.blocks_q):
                    blocks = sorted(col[ptr[row] : ptr[row + 1]])
                    row += 1
                    rows = slice(queries[i], queries[i + 1])
                    if not blocks or rows.start == rows.stop:
                        continue
                    spans = [slice(keys[j], keys[j + 1]) for j in blocks]
                    near = torch.cat([k[b, s, h // group] for s in spans])
                    value = torch.cat([v[b, s, h // group] for s in spans])
                    scores = (q[b, rows, h].to(lse.dtype) @ near.to(lse.dtype).mT) * scale
                    lse[b, h, rows] = scores.logsumexp(-1)
                    out[b, rows, h] = (scores.softmax(-1) @ value.to(lse.dtype)).to(q.dtype)
        return out, lse
