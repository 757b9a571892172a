"""Batches cut into equal parts and put together again, in whatever structure models return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


def stream_of(stream: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The denoiser's input named `stream`, which is its first argument."""
    return kwargs[stream] if stream in kwargs else args[0]


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def tensors_in(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if is_tensor(leaf)]


def cloned(value: Any) -> Any:
    return tree_map(lambda v: v.detach().clone() if is_tensor(v) else v, value)


def part_of(value: Any, i: int, count: int) -> Any:
    """The `i`-th of `count` equal parts of every batch (axis 0) in `value`."""
    if count == 1:
        return value
    return tree_map(lambda v: v.chunk(count)[i] if is_tensor(v) else v, value)


def joined(values: Sequence[Any]) -> Any:
    """The batches of `values` one after the other, in the structure of the first."""
    if len(values) == 1:
        return values[0]
    flat, spec = zip(*map(tree_flatten, values), strict=True)
    leaves = [torch.cat(c) if is_tensor(c[0]) else c[0] for c in zip(*flat, strict=True)]
    return tree_unflatten(leaves, spec[0])
