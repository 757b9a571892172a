"""Published updates as forward hooks on a plain pipeline: all is computed, then overwritten."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.utils._pytree import tree_map

from tests.tiny_pipelines import call


class Counted:
    """Numbers the denoiser calls of a plain pipeline: `step`, and which branch of the step."""

    def __init__(self, pipe: DiffusionPipeline, branches: int) -> None:
        self.calls, self.branches, self.hooks = -1, branches, []
        self.hooks.append(pipe.transformer.register_forward_pre_hook(self._count))

    def _count(self, *_: Any) -> None:
        self.calls += 1

    @property
    def step(self) -> int:
        return self.calls // self.branches

    @property
    def branch(self) -> int:
        return self.calls % self.branches

    def run(self, pipe: DiffusionPipeline, name: str, **arguments: Any) -> torch.Tensor:
        try:
            return call(pipe, name, **arguments)
        finally:
            for hook in self.hooks:
                hook.remove()


def taylorseer(
    counted: Counted, modules: list[torch.nn.Module], order: int, interval: int, warmup: int
) -> None:
    """TaylorSeer (2503.06923) at the outputs of `modules`, differences kept as factors."""
    factors: dict[tuple[int, int], list[Any]] = {}
    last: dict[tuple[int, int], int] = {}

    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        step, key = counted.step, (id(module), counted.branch)
        old = factors.get(key, [])
        if step < warmup or (step - warmup + 1) % interval == 0:
            new = [output]
            for i in range(min(order, len(old)) if step >= warmup - 1 else 0):
                gap = step - last[key]
                new.append(tree_map(lambda a, b, g=gap: (a - b) / g, new[i], old[i]))
            factors[key], last[key] = new, step
            return None
        total = old[0]
        for i, factor in enumerate(old[1:], start=1):
            weight = (step - last[key]) ** i / math.factorial(i)
            total = tree_map(lambda a, b, w=weight: a + w * b, total, factor)
        return total

    counted.hooks += [module.register_forward_hook(hook) for module in modules]


def first_block_cache(
    counted: Counted,
    first: torch.nn.Module,
    last: torch.nn.Module,
    threshold: float,
    read: Callable[[Any, dict[str, Any]], torch.Tensor],
    pick: Callable[[Any], torch.Tensor],
    put: Callable[[Any, torch.Tensor], Any],
) -> list[bool]:
    """FirstBlockCache (ParaAttention); returns, call by call, whether the blocks are computed.

    `read` takes the hidden states from a block's arguments, `pick` from what it returns, and
    `put` replaces them there.
    """
    reference: dict[int, torch.Tensor] = {}
    added: dict[int, torch.Tensor] = {}
    computed: list[bool] = []
    entry: list[torch.Tensor] = []

    def probe(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        entry[:] = [pick(output)]
        residual, branch = entry[0] - read(args, kwargs), counted.branch
        if branch in reference:
            change = (residual - reference[branch]).abs().mean() / reference[branch].abs().mean()
            if change < threshold:
                computed.append(False)
                return
        reference[branch] = residual
        computed.append(True)

    def replace(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if computed[-1]:
            added[counted.branch] = pick(output) - entry[0]
            return None
        return put(output, entry[0] + added[counted.branch])

    counted.hooks.append(first.register_forward_hook(probe, with_kwargs=True))
    counted.hooks.append(last.register_forward_hook(replace))
    return computed
