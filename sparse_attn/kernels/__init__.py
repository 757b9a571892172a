"""Kernels: block-sparse attention over a layout. A kernel never sees a pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from ..layout import BlockLayout
from .external import EXTERNAL
from .flex import Flex
from .gather import Gather
from .reference import Reference
from .triton_int8_launch import TritonInt8
from .triton_launch import Triton, block_sum, merge_lse


class Kernel(Protocol):
    """q is (B, S_q, H, D), k and v (B, S_k, H_k, D) with H a multiple of H_k; any strides."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output (B, S_q, H, D) in q's dtype, and the natural log of the sum of exponentials.

        The latter is (B, H, S_q) float32 (float64 for float64 inputs), -inf where a query attends
        to nothing; the output is 0 there.
        """
        ...

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        """None when usable on tensors like `q` with `layout`, else the reason in words."""
        ...


KERNELS: dict[str, Kernel] = {
    **EXTERNAL,
    "flex": Flex(),
    "gather": Gather(),
    "reference": Reference(),
    "triton": Triton(),
    "triton_int8": TritonInt8(),
    "triton_int8_fp8": TritonInt8(fp8=True),
}

TOOLS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "triton": {"sums": block_sum, "merge": merge_lse},
}
"""What patterns are given beside a kernel asked for by name, instead of plain torch (`Place`)."""
