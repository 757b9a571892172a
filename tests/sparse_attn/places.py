"""What the tests of patterns share: places of a call, random q, k, v, dense attention."""

import torch
from torch import Tensor

from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.pattern import Pattern, Place, Routing
from accel.token_grid import TokenGrid


def place(grid: TokenGrid, layer: int = 0, fraction: float = 0.5, **given) -> Place:
    return Place(layer, 4, fraction, None, None, grid, given.pop("state", {}), **given)


def random_qkv(
    grid: TokenGrid, batch: int = 2, heads: int = 3, width: int = 16, seed: int = 0, dtype=None
) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shape = (batch, grid.tokens, heads, width)
    q, k, v = (torch.randn(shape, generator=draw, dtype=dtype) for _ in range(3))
    return q, k, v


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(
        1, 2
    )


def arranged(x: Tensor, order: Tensor | None) -> Tensor:
    """x (B, S, H, D) by an order (B or 1, H or 1, S), as `Routing` says."""
    if order is None:
        return x
    at = order.expand(x.shape[0], x.shape[2], -1).transpose(1, 2)
    return x.gather(1, at[..., None].expand_as(x))


def attend(routing: Routing, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the routed attention returns, in the order of q."""
    a, b, c = arranged(q, routing.order_q), *(arranged(x, routing.order_k) for x in (k, v))
    out, lse = KERNELS["reference"].attend(a, b, c, routing.layout, q.shape[-1] ** -0.5)
    if routing.compensate is not None:
        out = routing.compensate(a, b, c, out, lse)
    return out if routing.order_q is None else arranged(out, routing.order_q.argsort(-1))


def token_mask(routing: Routing) -> Tensor:
    """(B, H, S, S) bool: which token of q sees which of k, in the order they came in."""
    mask = routing.layout.mask()
    for axis, order in ((2, routing.order_q), (3, routing.order_k)):
        if order is not None:
            back = order.argsort(-1).expand(*mask.shape[:2], -1)
            shape = [*mask.shape]
            view = back[..., None] if axis == 2 else back[:, :, None]
            mask = mask.gather(axis, view.expand(shape))
    return mask


def route(pattern: Pattern, grid: TokenGrid, *qkv: Tensor, **given) -> Routing:
    found = pattern.route(*qkv, place(grid, **given))
    assert found is not None
    return found


ODD = TokenGrid(5, 7, 9, 11, 6)
"""No size a multiple of anything, with text before and after: 332 tokens."""
