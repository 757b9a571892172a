"""What a plan is made from: inner products of the outputs of full runs across steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PIECE = 2**16
"""Entries multiplied at once."""


class Gram:
    """G[i, j] = sum over entries of v_i v_j, run by run.

    Attributes:
        each: of every run, (N, N), float64.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.each: list[np.ndarray] = []

    @property
    def matrix(self) -> np.ndarray:
        """The sum over all runs (N, N)."""
        return np.sum(self.each, axis=0) if self.each else np.zeros((self.steps, self.steps))

    def add(self, outputs: Tensor) -> None:
        """Add the outputs (N, …) of one run."""
        # in double precision, a piece at a time: small differences of large products are wanted
        pieces = (p.to("cpu", torch.float64) for p in outputs.detach().flatten(1).split(PIECE, 1))
        self.each.append(sum((p @ p.T).numpy() for p in pieces))

    def error(self, combination: np.ndarray) -> float:
        """Norm of sum_j combination[j] v_j."""
        return float(np.sqrt(max(combination @ self.matrix @ combination, 0.0)))
