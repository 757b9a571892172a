"""How long each step of a run took, without waiting for an accelerator."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.utils._pytree import tree_leaves

Mark: TypeAlias = "float | torch.cuda.Event"


class StepTimes:
    """Marks the end of every step.

    On CUDA by events, which are read once the run is over; otherwise by the clock on the wall.
    """

    def __init__(self) -> None:
        self._marks: list[Mark] = []

    def clear(self) -> None:
        self._marks = []

    def step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Handle a scheduler step."""
        result = call(*args, **kwargs)
        tensors = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        on_cuda = any(tensor.is_cuda for tensor in tensors)
        self._marks.append(_event() if on_cuda else time.perf_counter())
        return result

    def seconds(self) -> tuple[float, ...]:
        """From the end of each step to that of the next, s; the first step has none before it."""
        return tuple(_between(*pair) for pair in itertools.pairwise(self._marks))


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(first: Mark, second: Mark) -> float:
    if isinstance(first, float) and isinstance(second, float):
        return second - first
    assert not isinstance(first, float) and not isinstance(second, float)
    second.synchronize()
    return float(first.elapsed_time(second)) / 1000
