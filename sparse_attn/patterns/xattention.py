"""XAttention (2503.16428): blocks scored by the sums of their antidiagonals."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

from accel.method import check_fields

from ..blocks import in_order, routing
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force, select


@dataclass(frozen=True)
class XAttention:
    """Every antidiagonal of step `stride` meets every vertical and slash line of a block.

    Queries are taken in groups of `stride` in reverse, keys in groups forward, so that one product
    of S / stride rows sums q_i k_j over an antidiagonal. After a softmax the sums of each block say
    how much it holds; the fewest blocks are kept whose sum passes `mass`, the crossing one too.

    Args:
        mass: share of a query block's attention to cover (0.9; 0.95 for HunyuanVideo).
        stride: tokens of a group, which divides `block`; 8 or 16.
        block: tokens of a block, 64 or 128.
        minimum: fewest video blocks a query block keeps.
    """

    mass: float = 0.9
    stride: int = 16
    block: int = 128
    minimum: int = 1

    def __post_init__(self) -> None:
        check_fields(
            self,
            mass=(0 <= self.mass <= 1, "from 0 to 1"),
            block=(self.block in BLOCKS, "64 or 128"),
            stride=(
                self.stride >= 1 and self.block % self.stride == 0,
                f"a divisor of block={self.block}",
            ),
            minimum=(self.minimum >= 1, "at least 1"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        grid = place.grid
        video = slice(grid.text_first, grid.text_first + grid.video)
        share = self.scores(q[:, video], k[:, video], place.scale_of(q))
        blocks = in_order(grid, self.block, q.device)
        map = blocks.text.new_zeros(q.shape[0], q.shape[2], blocks.count, blocks.count)
        map[..., blocks.video, blocks.video] = select(share, mass=self.mass, minimum=self.minimum)
        return routing(force(map, blocks.text, blocks.text), blocks, blocks, q.shape[0], q.shape[2])

    def scores(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """(B, H, n, n) float32, rows sum to 1: share of each key block, of q, k (B, S, H, D).

        The last group is filled with zeros. That adds nothing to sums of keys, and rows of queries
        that are all filling do not come up; no group of keys is.
        """
        tokens, heads = q.shape[1:3]
        fill = (0, 0, 0, 0, 0, -tokens % self.stride)
        k = k.repeat_interleave(heads // k.shape[2], 2)
        # the group's tokens side by side: (B, H, S / stride, stride * D)
        query, key = (
            pad(x, fill).unflatten(1, (-1, self.stride)).permute(0, 3, 1, 2, 4) for x in (q, k)
        )
        scores = query.flip(3).flatten(3) @ key.flatten(3).mT * (scale / self.stride)
        weights = scores.float().softmax(-1)
        groups = self.block // self.stride
        short = -weights.shape[-1] % groups
        sums = pad(weights, (0, short, 0, short)).unflatten(-1, (-1, groups)).sum(-1)
        sums = sums.unflatten(-2, (-1, groups)).sum(-2)
        return sums / sums.sum(-1, keepdim=True)
