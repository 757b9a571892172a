"""VSA (2505.13389): attention between averaged tiles, and attention in full to the best of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import Blocks, by_tile, routing, with_text
from ..kernels import KERNELS
from ..kernels.choice import check_name, choose
from ..layout import BLOCKS
from ..ordered import attend_routed
from ..pattern import Place, Routing
from ..selection import force, select


@dataclass(frozen=True)
class VSA:
    """The choice of VSA: each tile attends to the tiles whose means score best with its own.

    Without the trained coarse branch, for which see `VSAttention`, this is a pattern like others.
    Text is whole, as in the authors' variant with exempt prefix keys.

    Args:
        sparsity: share of the video's tiles left out; 1 - (32 / tiles) in the paper.
        tile: frames, rows and columns of a tile, together at most 128 tokens.
    """

    sparsity: float = 0.875
    tile: tuple[int, int, int] = (4, 4, 4)

    def __post_init__(self) -> None:
        fits = len(self.tile) == 3 and min(self.tile) >= 1 and math.prod(self.tile) <= BLOCKS[-1]
        check_fields(
            self,
            sparsity=(0 <= self.sparsity < 1, "at least 0, below 1"),
            tile=(fits, f"three sizes of at least 1 with a product of at most {BLOCKS[-1]}"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        blocks = by_tile(place.grid, self.tile, q.device)
        return self.fine(coarse_scores(q, k, blocks, place.scale_of(q)), blocks, place.grid)

    def fine(self, scores: Tensor, blocks: Blocks, grid: TokenGrid) -> Routing:
        """The routing from scores (B, H, n, n) between the video's tiles."""
        count = scores.shape[-1]
        number = max(1, min(math.ceil((1 - self.sparsity) * count - 1e-9), count))
        map = blocks.text.new_zeros(*scores.shape[:2], blocks.count, blocks.count)
        map[..., blocks.video, blocks.video] = select(scores.detach(), keep=number / count)
        map, share = force(map, blocks.text, blocks.text), with_text(grid, number / count)
        return routing(map, blocks, blocks, scores.shape[0], scores.shape[1], share=share)


class VSAttention(nn.Module):
    """VSA with its coarse branch: O = O_fine + gate * O_coarse, differentiable.

    The gate is linear in the hidden states and starts at zero, so that a model adapts from dense
    attention by raising the sparsity from 0; at sparsity 0 and gate 0 it is dense attention.

    Args:
        width: channels of the hidden states.
        heads: H.
        head_dim: D.
        pattern: which tiles; assign another one to anneal its sparsity.
        fine_gate: whether the fine branch has a gate too (starting at one), for models trained from
            the beginning.
        kernel: what computes the fine branch, by name; "gather", "triton" and "reference" have
            gradients.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        pattern: VSA | None = None,
        *,
        fine_gate: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        check_name(kernel, KERNELS)
        self.pattern = pattern or VSA()
        self.kernel = kernel
        self.coarse_gate = nn.Linear(width, heads * head_dim)
        self.fine_gate = nn.Linear(width, heads * head_dim) if fine_gate else None
        nn.init.zeros_(self.coarse_gate.weight)
        nn.init.zeros_(self.coarse_gate.bias)
        if self.fine_gate is not None:
            nn.init.zeros_(self.fine_gate.weight)
            nn.init.ones_(self.fine_gate.bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, place: Place) -> Tensor:
        """Attention of q (B, S, H, D) to k and v (B, S, H_k, D).

        Args:
            hidden: (B, S, width) what q was made of.
            place: its grid and scale are all that is used.

        Returns:
            (B, S, H, D). Text tokens have no coarse branch.
        """
        blocks = by_tile(place.grid, self.pattern.tile, q.device)
        scale = place.scale_of(q)
        scores = coarse_scores(q, k, blocks, scale)
        routed = self.pattern.fine(scores, blocks, place.grid)
        _, kernel, _ = choose(self.kernel, KERNELS, q, routed.layout)
        fine = attend_routed(kernel, routed, q, k, v, scale)
        value = blocks.means(v)[:, :, blocks.video]
        value = value.repeat_interleave(q.shape[2] // k.shape[2], 1)
        told = scores.new_zeros(*scores.shape[:2], blocks.count, q.shape[-1])
        told[:, :, blocks.video] = scores.softmax(-1) @ value
        coarse = told[:, :, blocks.owner()].transpose(1, 2)
        out = coarse.to(q.dtype) * self.coarse_gate(hidden).view_as(q)
        return out + (fine if self.fine_gate is None else fine * self.fine_gate(hidden).view_as(q))


def coarse_scores(q: Tensor, k: Tensor, blocks: Blocks, scale: float) -> Tensor:
    """(B, H, n, n) float32 scores between means of the video's tiles, times `scale`."""
    key = blocks.means(k)[:, :, blocks.video].repeat_interleave(q.shape[2] // k.shape[2], 1)
    return blocks.means(q)[:, :, blocks.video] @ key.mT * scale
