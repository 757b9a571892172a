"""A routed attention call: tokens put in order, a kernel, what it left out, and back."""

from __future__ import annotations

from torch import Tensor

from .kernels import Kernel
from .pattern import Routing
from .reorder import inverse


def attend_routed(
    kernel: Kernel, routing: Routing, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None
) -> Tensor:
    """Attention of q (B, S, H, D) to k and v (B, S, H_k, D) as `routing` says, in the order of q.

    Args:
        scale: of the scores; 1 / sqrt(D) by default.
    """
    query, key, value = (
        in_order(q, routing.order_q),
        *(in_order(x, routing.order_k) for x in (k, v)),
    )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = kernel.attend(query, key, value, routing.layout, scale)
    if routing.compensate is not None:
        out = routing.compensate(query, key, value, out, lse)
    return out if routing.order_q is None else in_order(out, inverse(routing.order_q))


def in_order(x: Tensor, order: Tensor | None) -> Tensor:
    """x (B, S, H, D) by an order (B or 1, H or 1, S); as it is without one."""
    if order is None:
        return x
    if order.shape[:2] == (1, 1):
        return x.index_select(1, order[0, 0])
    at = order.expand(x.shape[0], x.shape[2], -1).transpose(1, 2)
    return x.gather(1, at[..., None].expand(-1, -1, -1, x.shape[-1]))
