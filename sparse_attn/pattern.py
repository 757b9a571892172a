"""Pattern: which keys matter to which queries. It knows video and never sees a kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from accel.step import Step
from accel.token_grid import TokenGrid

from .kernels.block_sum import block_sum
from .kernels.merge import merge_lse
from .layout import BlockLayout

Compensate = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`compensate(q, k, v, o, lse) -> o`, all in the order the kernel saw."""


@dataclass(frozen=True)
class Place:
    """Where an attention call is.

    Attributes:
        layer: number of the self-attention module among those of the denoiser, in order.
        layers: how many there are.
        fraction: share of the run that lies behind, from 0 at the first step.
        step: index, noise level and branch; None outside a pipeline.
        branch: `cond`, `uncond`, or what the pipeline calls it.
        grid: frames, rows and columns of the tokens, and where the text is.
        state: kept for this run, layer, branch and shape; patterns keep masks and centroids there.
        scale: factor of the scores, where the model sets one; else 1 / sqrt(D), see `scale_of`.
        group: processes that have the other heads of this attention, rank by rank; None where all
            are here.
        sums: what sums the attention of every block, as `kernels.block_sum.block_sum`.
        merge: what puts two attentions together, as `kernels.merge.merge_lse`.
    """

    layer: int
    layers: int
    fraction: float
    step: Step | None
    branch: str | None
    grid: TokenGrid
    state: dict[Any, Any] = field(default_factory=dict)
    scale: float | None = None
    group: Any = None
    sums: Callable[..., Tensor] = block_sum
    merge: Callable[..., tuple[Tensor, Tensor]] = merge_lse

    def scale_of(self, q: Tensor) -> float:
        """Factor of the scores of q (B, S, H, D)."""
        scale: float = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        return scale


@dataclass(frozen=True)
class Routing:
    """What to compute of one attention call.

    Attributes:
        layout: the blocks.
        order_q: (B or 1, H or 1, S) long, the token at every position, applied to q before the
            kernel and undone on the output; None leaves the order.
        order_k: the same for k and v.
        compensate: what to add for the blocks that are left out.
    """

    layout: BlockLayout
    order_q: Tensor | None = None
    order_k: Tensor | None = None
    compensate: Compensate | None = None


@runtime_checkable
class Pattern(Protocol):
    """A frozen dataclass whose fields are settings."""

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        """The blocks to compute for q (B, S_q, H, D), k and v (B, S_k, H_k, D).

        None means dense: the attention of the model is called as it was. Also asked when
        acceleration is enabled, with zeros and `place.step` None, for the kind of layout it makes.
        That may be costly where rounds or clusters are many: a pattern with a method `quick()` is
        asked by what that returns, a pattern of the same kind of layout.
        """
        ...
