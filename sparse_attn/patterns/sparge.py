"""SpargeAttn's selection (2502.18137): by means where tokens of a block are alike, else all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.method import check_fields

from ..blocks import ORDERS, Blocks, along, routing, with_text
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force, select


@dataclass(frozen=True)
class SpargeAttn:
    """A block is judged by its mean only if its tokens resemble one another.

    Means of query and key blocks (keys less their mean over the sequence, to which a softmax is
    blind) give a small map of probabilities, of which each row keeps its best. Blocks whose mean
    cosine similarity is below `similarity` are computed in full, rows and columns. The released
    kernel also skips products within a block and works in INT8, which is a kernel's business.

    Args:
        mass: share of the probability a row keeps; None for `keep`.
        keep: share of the key blocks a row keeps instead (the authors' later advice: 0.5, with
            similarity=-0.1, which judges all).
        similarity: least mean cosine between the tokens of a block that is judged by its mean.
        include_crossing: whether the block with which the sum passes `mass` is kept. The paper and
            its code leave it out, and so keep less than `mass`.
        order: "hilbert" puts near tokens in one block; "raster" leaves them.
        block_q: tokens of a query block; 128, on Hopper 64.
        block_k: tokens of a key block; 64, on Hopper 128.
    """

    mass: float | None = 0.98
    keep: float | None = None
    similarity: float = 0.6
    include_crossing: bool = False
    order: str = "hilbert"
    block_q: int = 128
    block_k: int = 64

    def __post_init__(self) -> None:
        check_fields(
            self,
            mass=(self.mass is None or 0 <= self.mass <= 1, "from 0 to 1, or None"),
            keep=(
                (self.keep is None) != (self.mass is None)
                and (self.keep is None or 0 < self.keep <= 1),
                "a share above 0 where mass=None, else None",
            ),
            similarity=(-1 <= self.similarity <= 1, "a cosine, from -1 to 1"),
            order=(self.order in ORDERS, f"one of {', '.join(ORDERS)}"),
            block_q=(self.block_q in BLOCKS, "64 or 128"),
            block_k=(self.block_k in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        rows, columns = (
            along(place.grid, self.order, size, q.device) for size in (self.block_q, self.block_k)
        )
        group = q.shape[2] // k.shape[2]
        smooth = k.float() - k.float().mean(1, keepdim=True)
        alike_q = (cosines(q, rows) >= self.similarity)[..., rows.video]
        alike_k = (cosines(smooth, columns) >= self.similarity)[..., columns.video]
        alike_k = alike_k.repeat_interleave(group, 1)
        key = columns.means(smooth)[:, :, columns.video].repeat_interleave(group, 1)
        scores = rows.means(q)[:, :, rows.video] @ key.mT * place.scale_of(q)
        # where no key block is alike there is nothing to choose: all are forced below
        share = scores.masked_fill(~alike_k[:, :, None], -torch.inf).softmax(-1).nan_to_num(0)
        chosen = select(
            share, keep=self.keep, mass=self.mass, include_crossing=self.include_crossing
        )
        map = rows.text.new_zeros(*share.shape[:2], rows.count, columns.count)
        map[..., rows.video, columns.video] = force(chosen, ~alike_q, ~alike_k)
        map = force(map, rows.text, columns.text)
        least = None if self.keep is None else with_text(place.grid, self.keep)
        return routing(map, rows, columns, q.shape[0], q.shape[2], share=least)


def cosines(x: Tensor, blocks: Blocks) -> Tensor:
    """(B, H, n) float32: mean cosine between all pairs of tokens of a block, a token's own too."""
    directions = torch.nn.functional.normalize(x.float(), dim=-1)
    return blocks.means(directions).square().sum(-1)
