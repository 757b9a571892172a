"""The truth that other kernels are tested against: dense attention with the mask of the layout."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import BlockLayout

LARGEST = 2**31


class Reference:
    """Dense scores, masked, in float32 or better. Memory grows with S_q * S_k."""

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        scores = layout.batch * layout.heads * layout.seq_q * layout.seq_k
        if scores > LARGEST:
            return f"it would hold {scores / 1e9:.1f} billion scores at once; it is meant for tests"
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(q.dtype, torch.float32)
        group = q.shape[2] // k.shape[2]
        query, key, value = (t.transpose(1, 2).to(dtype) for t in (q, k, v))
        key, value = (t.repeat_interleave(group, 1) for t in (key, value))
        mask = layout.mask()
        read = mask.any(2)[..., None]
        key, value = (torch.where(read, t, 0) for t in (key, value))
        scores = (query @ key.mT * scale).masked_fill_(~mask, -torch.inf)
        lse = scores.logsumexp(-1)
        weights = (scores - lse.masked_fill(lse == -torch.inf, 0)[..., None]).exp()
        # 0 times a NaN would be NaN: such values reach the queries that attend to them, no others
        broken = ~value.isfinite()
        out = weights @ value.masked_fill(broken, 0)
        out = out.masked_fill(mask.to(dtype) @ broken.to(dtype) > 0, torch.nan)
        return out.transpose(1, 2).to(q.dtype), lse
