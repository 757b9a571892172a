"""FLOPs that a denoiser really ran, whoever accelerates it, counted at its leaf layers."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn


class WorkCounter:
    """Counts linear and convolution layers, and the two products of attention, as they run.

    Forward hooks on leaves: a leaf that is skipped, in whatever way, is not counted. Element-wise
    operations, norms and whatever a method computes for itself are not counted either, and keys
    that a method kept from former steps are not seen: of regions, take what their report tells.

        with WorkCounter(pipe.transformer) as work:
            pipe(...)
        work.flops
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.flops = 0
        self._denoiser = denoiser
        self._handles: list[Any] = []
        self._queries: dict[int, int] = {}

    def __enter__(self) -> WorkCounter:
        for module in self._denoiser.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                self._handles.append(module.register_forward_hook(self._leaf))
            if isinstance(getattr(module, "to_k", None), nn.Linear):
                self._attention(module)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _leaf(self, module: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
        self.flops += 2 * module.weight[0].numel() * out.numel()

    def _attention(self, module: nn.Module) -> None:
        """Queries × keys and weights × values; diffusers' processors project queries first."""

        def query(_: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
            self._queries[id(module)] = out.shape[1]

        def key(_: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> None:
            self.flops += 4 * self._queries[id(module)] * out.numel()

        self._handles.append(module.to_q.register_forward_hook(query))
        self._handles.append(module.to_k.register_forward_hook(key))
