"""DraftAttention (2505.14708): attention between averaged patches tells which patches matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from accel.method import check_fields

from ..blocks import by_tile, routing, with_text
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force, select


@dataclass(frozen=True)
class DraftAttention:
    """Tokens are ordered patch by patch, and a low-resolution attention map chooses the pairs.

    Each head keeps the highest entries of its whole map, so heads cost the same but rows do not.
    Text is whole.

    Args:
        density: share of the pairs of patches that a head computes (the authors: 0.1 to 0.25).
        tile: frames, rows and columns of a patch, together at most 128 tokens.
        minimum: fewest patches a patch attends to. The paper has none, and rows may starve.
    """

    density: float = 0.25
    tile: tuple[int, int, int] = (1, 8, 16)
    minimum: int = 1

    def __post_init__(self) -> None:
        fits = len(self.tile) == 3 and min(self.tile) >= 1 and math.prod(self.tile) <= BLOCKS[-1]
        check_fields(
            self,
            density=(0 < self.density <= 1, "above 0, at most 1"),
            tile=(fits, f"three sizes of at least 1 with a product of at most {BLOCKS[-1]}"),
            minimum=(self.minimum >= 0, "at least 0"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        blocks = by_tile(place.grid, self.tile, q.device)
        key = blocks.means(k)[:, :, blocks.video].repeat_interleave(q.shape[2] // k.shape[2], 1)
        draft = (blocks.means(q)[:, :, blocks.video] @ key.mT * place.scale_of(q)).softmax(-1)
        map = blocks.text.new_zeros(*draft.shape[:2], blocks.count, blocks.count)
        map[..., blocks.video, blocks.video] = select(
            draft, keep=self.density, budget="head", minimum=self.minimum
        )
        map = force(map, blocks.text, blocks.text)
        share = with_text(place.grid, self.density)
        return routing(map, blocks, blocks, q.shape[0], q.shape[2], share=share)
