"""merge_lse: two attentions over disjoint keys become one."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_lse(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum over the union of the keys of two attentions of the same queries.

    Args:
        o1, o2: (B, S_q, H, D) outputs.
        lse1, lse2: (B, H, S_q) natural logarithms of the sums of exponentials; -inf for no keys.

    Returns:
        (B, S_q, H, D) in the type of o1, 0 where neither had keys, and (B, H, S_q).
    """
    lse = torch.logaddexp(lse1, lse2)
    shift = lse.masked_fill(lse == -torch.inf, 0)
    first, second = ((x - shift).exp().transpose(1, 2)[..., None] for x in (lse1, lse2))
    out = o1.to(first.dtype) * first + o2.to(first.dtype) * second
    return out.to(o1.dtype), lse
