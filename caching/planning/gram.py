"""What a plan is made from: inner products of the outputs of full runs across steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Gram:
    """G[i, j] = sum over samples and entries of v_i v_j, added up run by run.

    Attributes:
        matrix: (N, N), float64.
    """

    def __init__(self, steps: int) -> None:
        self.matrix = np.zeros((steps, steps))

    def add(self, outputs: Tensor) -> None:
        """Add the outputs (N, …) of one run."""
        flat = outputs.detach().flatten(1).to("cpu", torch.float32)
        self.matrix += (flat @ flat.T).double().numpy()

    def error(self, combination: np.ndarray) -> float:
        """Norm of sum_j combination[j] v_j."""
        return float(np.sqrt(max(combination @ self.matrix @ combination, 0.0)))
