"""Muon updates for the matrices inside a network, beside the optimizer that trains the rest.

Momentum of each hidden matrix is replaced by the nearest (semi-)orthogonal matrix, by five
Newton-Schulz iterations (Jordan et al. 2024, kellerjordan.github.io/posts/muon), scaled so that
its size matches an AdamW update (Liu et al. 2025, arXiv:2502.16982, eq. 4).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


def hidden_matrices(*modules: nn.Module) -> list[nn.Parameter]:
    """Weights of the linear and convolution layers in `modules`, the ones Muon is meant for."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    return [layer.weight for m in modules for layer in m.modules() if isinstance(layer, kinds)]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Roughly U Vᵀ of each matrix U S Vᵀ in (N, rows, columns); singular values in 0.7-1.2."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x  # many a CPU has no fast products in half precision
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Takes `weights` over from whatever optimizer steps them, inside a `with` block.

    Right before a step of an optimizer that holds these weights, they are moved by
    `ratio` × that optimizer's rate × the matched orthogonal update, and their gradients removed,
    so that the optimizer passes over them. Momentum restarts with each block.
    """

    def __init__(
        self, weights: Iterable[nn.Parameter], ratio: float = 2.0, momentum: float = 0.95
    ) -> None:
        self.ratio, self.momentum = ratio, momentum
        self._groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for weight in weights:
            self._groups[weight.shape].append(weight)
        self._buffers: dict[torch.Size, Tensor] = {}

    def __enter__(self) -> Muon:
        self._buffers.clear()
        self._hook = register_optimizer_step_pre_hook(self._step)
        return self

    def __exit__(self, *exc: object) -> None:
        self._hook.remove()

    @torch.no_grad()
    def _step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for shape, weights in self._groups.items():
            if id(weights[0]) not in rates or weights[0].grad is None:
                continue
            # a convolution is the matrix from all its inputs to its outputs
            gradient = torch.stack([w.grad.flatten(1) for w in weights if w.grad is not None])
            buffer = self._buffers.setdefault(shape, torch.zeros_like(gradient))
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalised(gradient.lerp(buffer, self.momentum))
            size = 0.2 * max(gradient.shape[1:]) ** 0.5 * self.ratio * rates[id(weights[0])]
            for weight, change in zip(weights, update, strict=True):
                weight.sub_(change.view_as(weight), alpha=size)
                weight.grad = None
