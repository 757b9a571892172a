"""What the tests of guidance see of a run: rows evaluated, and predictions of both branches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils._pytree import tree_leaves

from accel.family import arguments_of
from accel.registry import recognise


@contextmanager
def evaluated(pipe: DiffusionPipeline) -> Iterator[list[int]]:
    """A list that grows by the rows of every evaluation of a denoiser, counted inside of it."""
    rows: list[int] = []

    def count(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        rows.append(len(next(iter(arguments_of(module, args, kwargs).values()))))

    hooks = [
        m.register_forward_pre_hook(count, with_kwargs=True) for m in recognise(pipe)[1].values()
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def predictions(pipe: DiffusionPipeline) -> Iterator[list[Tensor]]:
    """A list of what every evaluation of a denoiser returns."""
    made: list[Tensor] = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        made.append(next(v for v in tree_leaves(output) if isinstance(v, Tensor)).clone())

    hooks = [m.register_forward_hook(note) for m in recognise(pipe)[1].values()]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def branches(pipe: DiffusionPipeline) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """A list of the conditional and the unconditional prediction of every guided step; filled at
    the end."""
    order = recognise(pipe)[0].fused
    pairs: list[tuple[Tensor, Tensor]] = []
    with predictions(pipe) as made:
        yield pairs
    parts = [half for value in made for half in value.chunk(2)] if order else made
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        pairs.append((second, first) if order == ("uncond", "cond") else (first, second))


def stepped(pipe: DiffusionPipeline) -> list[Tensor]:
    """A list that grows by the guided prediction that the scheduler is given."""
    given: list[Tensor] = []
    kind = type(pipe.scheduler)

    class Noting(kind):
        @functools.wraps(kind.step)
        def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
            given.append(model_output.clone())
            return super().step(model_output, *args, **kwargs)

    pipe.scheduler = Noting.from_config(pipe.scheduler.config)
    return given
