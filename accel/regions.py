"""Regions: which tokens each step of a run computed, for the report and for pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
        resolution: the others were computed too, but at a lower resolution.
    """

    grid: tuple[int, int, int]
    total: int
    active: dict[int, Tensor] = field(default_factory=dict)
    latents: Tensor | None = None
    resolution: bool = False

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
        """Share of the image tokens that was computed, over all steps: the saving in theory.

        With `resolution`, the share that had full resolution.
        """
        counts = [a.shape[1] / self.tokens for a in self.active.values()]
        return (self.total - len(counts) + sum(counts)) / max(self.total, 1)

    def partial(self, step_seconds: Sequence[float]) -> tuple[float, float] | None:
        """What a partial step computed and took, as shares of a dense one: (tokens, time).

        The mean of the tokens, medians of the times; None without a step of either kind.

        Args:
            step_seconds: times of every step after the first, s.
        """
        kinds: tuple[list[float], list[float]] = [], []
        for step, seconds in enumerate(step_seconds, start=1):
            kinds[step in self.active].append(seconds)
        dense, part = kinds
        if not dense or not part or self.resolution:
            return None
        counts = [chosen.shape[1] / self.tokens for chosen in self.active.values()]
        return statistics.mean(counts), statistics.median(part) / statistics.median(dense)

    def to_dict(self, step_seconds: Sequence[float] = ()) -> dict[str, Any]:
        """Plain values for JSON: what was computed, and what a partial step saved.

        Args:
            step_seconds: times of every step after the first, s.
        """
        partial = self.partial(step_seconds)
        return {
            "grid": list(self.grid),
            "share": self.share,
            "tokens": {step: chosen.shape[1] for step, chosen in self.active.items()},
            "partial_tokens": None if partial is None else partial[0],
            "partial_time": None if partial is None else partial[1],
        }

    def summary(self, computed: float, step_seconds: Sequence[float] = ()) -> str:
        """One or two lines: tokens computed, what became of it, and of the saving in theory.

        Args:
            computed: share of the work that was done, text, dense steps and all.
            step_seconds: times of every step after the first, s.
        """
        if self.resolution:
            return (
                f"regions: {self.share:.1%} of the image at full resolution over {self.total} "
                f"steps ({self.total - len(self.active)} of them whole); {computed:.1%} of the "
                f"work done"
            )
        said = (
            f"regions: {self.share:.1%} of the image's tokens computed over "
            f"{self.total} steps ({self.total - len(self.active)} dense); {computed:.1%} of the "
            f"work done, since text and what surrounds the blocks run for every step"
        )
        partial = self.partial(step_seconds)
        if partial is None or partial[0] >= 1:
            return said
        tokens, time = partial
        return (
            f"{said}\npartial steps took {time:.1%} of a dense one's time for {tokens:.1%} of its "
            f"tokens: {1 - time:.1%} saved of {1 - tokens:.1%} in theory, "
            f"{(1 - time) / (1 - tokens):.2f} realised"
        )
