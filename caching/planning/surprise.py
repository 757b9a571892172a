"""How far an output was from what the plan took it for: the guard's indicator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accel.caching.forecasters import newton

MARGIN = 3.0
"""Over the largest indicator seen in calibration."""


def surprise(output: Tensor, node: int, before: Sequence[Tensor], nodes: Sequence[int]) -> Tensor:
    """(M,) distance of `output` (M, …) of step `node` from its forecast, as a share of its norm.

    Args:
        before: outputs at the last computed steps `nodes`, newest first.
    """
    off = output.float()
    for weight, value in zip(newton(nodes, node), before, strict=True):
        off = off.sub(value, alpha=weight)
    size = torch.linalg.vector_norm(output.float().flatten(1), dim=1)
    return torch.linalg.vector_norm(off.flatten(1), dim=1) / size.clamp_min(1e-12)


def surprises(nodes: Sequence[int], outputs: Sequence[Tensor]) -> Tensor:
    """(len(nodes), M) of a whole walk; 0 at the first node."""
    found = [torch.zeros(len(outputs[0]))]
    for j in range(1, len(nodes)):
        last = range(j - 1, max(j - 3, -1), -1)
        one = surprise(outputs[j], nodes[j], [outputs[m] for m in last], [nodes[m] for m in last])
        found.append(one.cpu())
    return torch.stack(found)
