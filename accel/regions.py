"""Regions: which tokens each step of a run computed, for the report and for pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Regions:
    """What a run computed where.

    Attributes:
        grid: frames, rows and columns of tokens.
        total: steps of the run.
        active: by step, the indices (N or 1, k) of the tokens it computed; steps not named here
            computed all.
        latents: the samples (N, tokens, channels) at the end of the run, to draw over.
    """

    grid: tuple[int, int, int]
    total: int
    active: dict[int, Tensor] = field(default_factory=dict)
    latents: Tensor | None = None

    @property
    def tokens(self) -> int:
        frames, rows, columns = self.grid
        return frames * rows * columns

    def mask(self, index: int, sample: int = 0) -> Tensor:
        """Truth values (frames, rows, columns): the tokens of `sample` that step `index` computed.

        Raises:
            ValueError: there is no such step, or sample, in the run.
        """
        if not 0 <= index < self.total:
            raise ValueError(f"step {index} is not one of this run's {self.total}")
        chosen = self.active.get(index)
        if chosen is None:
            return torch.ones(self.grid, dtype=torch.bool)
        if len(chosen) > 1 and not 0 <= sample < len(chosen):
            raise ValueError(f"sample {sample} is not one of this run's {len(chosen)}")
        mask = torch.zeros(self.tokens, dtype=torch.bool)
        mask[chosen[sample if len(chosen) > 1 else 0].cpu()] = True
        return mask.view(self.grid)

    @property
    def share(self) -> float:
        """Share of the image tokens that was computed, over all steps: the saving in theory."""
        counts = [a.shape[1] / self.tokens for a in self.active.values()]
        return (self.total - len(counts) + sum(counts)) / max(self.total, 1)

    def summary(self, computed: float) -> str:
        """One line: tokens computed, and what became of it.

        Args:
            computed: share of the work that was done, text, dense steps and all.
        """
        return (
            f"regions: {self.share:.1%} of the image's tokens computed over "
            f"{self.total} steps ({self.total - len(self.active)} dense); {computed:.1%} of the "
            f"work done, since text and what surrounds the blocks run for every step"
        )
