"""Attention tile of Efficient-vDiT (2502.06155): own frame and a few reference frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import Blocks, by_frame, static
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force


@dataclass(frozen=True)
class AttentionTile:
    """Each frame sees itself and `reference` frames, which see and are seen by all.

    Of F frames and a references, (a F + (F - a)(a + 1)) / F^2 of the map is computed: linear in F.
    The mask does not look at the sample. `search_references` chooses a number for every layer.

    Args:
        reference: number of reference frames, or one number per layer.
        at: which frames they are, for a single number; by default evenly spaced from the first,
            as the paper does not say.
        block: most tokens of a block, 64 or 128. No block straddles two frames, so blocks of small
            frames are small.
    """

    reference: int | tuple[int, ...] = 2
    at: tuple[int, ...] | None = None
    block: int = 128

    def __post_init__(self) -> None:
        counts = self.reference if isinstance(self.reference, tuple) else (self.reference,)
        single = isinstance(self.reference, int) and len(set(self.at or ())) == self.reference
        check_fields(
            self,
            reference=(bool(counts) and min(counts) >= 0, "frames, 0 or more, or one per layer"),
            at=(self.at is None or (single and min(self.at) >= 0), "`reference` different frames"),
            block=(self.block in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        count = self.reference
        if isinstance(count, tuple):
            if len(count) != place.layers:
                raise ValueError(
                    f"AttentionTile.reference has {len(count)} numbers for {place.layers} layers"
                )
            count = count[place.layer]
        if count >= place.grid.frames or place.grid.frames == 1:
            return None
        tile = replace(self, reference=count)
        return static(tile, place.grid, q.device, (q.shape[0], q.shape[2]))

    def map(self, grid: TokenGrid, device: torch.device) -> tuple[Tensor, Blocks]:
        """(n, n) bool, and the blocks; of a single number of references."""
        assert isinstance(self.reference, int)
        if self.at is not None and max(self.at, default=0) >= grid.frames:
            raise ValueError(
                f"AttentionTile.at={self.at} in a video of {grid.frames} latent frames"
            )
        chosen = self.at or [i * grid.frames // self.reference for i in range(self.reference)]
        blocks, frame = by_frame(grid, self.block, device)
        among = torch.isin(frame, torch.tensor(list(chosen), dtype=frame.dtype, device=device))
        wide = among | blocks.text
        return force(frame[:, None] == frame, wide, wide), blocks


def search_references(
    loss: Callable[[Sequence[int]], float],
    layers: int,
    frames: int,
    threshold: float,
    candidates: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The paper's layer-wise search: per layer the fewest references the loss allows.

    Every layer is tried alone, the others dense; `len(candidates)` evaluations a layer at most.

    Args:
        loss: of the model with so many references in each layer, `frames` meaning dense.
        threshold: largest increase over the dense loss, as a share of it (0.025 to 0.4).
        candidates: numbers of references to try; by default 1 to half the frames.

    Returns:
        A number for every layer, for `AttentionTile(reference=...)`.

    Raises:
        ValueError: a dense loss that is not above 0, of which no share can be taken.
    """
    tried = sorted(candidates if candidates is not None else range(1, frames // 2 + 1))
    dense = [frames] * layers
    base = loss(dense)
    if not base > 0:
        raise ValueError(f"the loss of the dense model must be above 0, got {base}")
    found = []
    for layer in range(layers):
        fits = (
            count
            for count in tried
            if loss([*dense[:layer], count, *dense[layer + 1 :]]) - base <= threshold * base
        )
        found.append(next(fits, frames))
    return tuple(found)
