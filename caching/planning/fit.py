"""Fitted weights: a segment's rule set so that the student ends nearest to the true state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RIDGE = 1e-6
"""Of the mean diagonal: what keeps nearly parallel outputs from taking opposite huge weights."""


def fitted_change(
    reached: Tensor, outputs: Sequence[Tensor], target: Tensor, ridge: float = RIDGE
) -> np.ndarray:
    """What to add to the weights of `outputs` so that `reached` comes nearest to `target`.

    Ridge regression in closed form, over all samples and entries at once. Equal weights for
    constant outputs, and zero where every output is zero.

    Args:
        reached: (M, …) where the rule as it is leads.
        outputs: up to |K| outputs at computed steps, each (M, …).
        target: (M, …) true states.

    Returns:
        (len(outputs),).
    """
    columns = torch.stack([o.flatten().double() for o in outputs])
    gram = columns @ columns.T
    size = gram.diagonal().mean()
    if size == 0:
        return np.zeros(len(outputs))
    missing = columns @ (target - reached).flatten().double()
    regular = gram + ridge * size * torch.eye(len(outputs), dtype=torch.float64)
    return torch.linalg.solve(regular, missing).cpu().numpy()
