"""FlexAttention over a `BlockMask`: torch compiles a kernel that walks the same lists."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..conversions import check_uniform
from ..layout import BlockLayout

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Flex:
    """Uniform blocks on CUDA. Uncompiled it computes every block, so that is for tests alone.

    Args:
        compiled: whether torch compiles it, once per shape.
    """

    unproven = "it has never been launched on a card"

    def __init__(self, compiled: bool = True) -> None:
        self.compiled = compiled

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        if self.compiled and q.device.type == "cpu":
            return "compiled for the CPU it returns no log-sum-exp, which gather does"
        if self.compiled and q.device.type != "cuda":
            return f"torch does not compile it for {q.device.type}"
        if q.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16, not {q.dtype}"
        try:
            check_uniform(layout)
        except ValueError as error:
            return str(error)
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        from torch.nn.attention.flex_attention import AuxRequest, flex_attention

        call = _compiled() if self.compiled else flex_attention
        query, key, value = (t.transpose(1, 2) for t in (q, k, v))
        out, aux = call(
            query,
            key,
            value,
            block_mask=layout.to_flex(),
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
            return_aux=AuxRequest(lse=True),
        )
        return out.transpose(1, 2), aux.lse


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True)
