"""Arguments of a block that hold something for every token, for some tokens."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .layouts import Layout
from .rows import take


def rotary_rows(
    layout: Layout, value: Any, index: Tensor, text: int
) -> tuple[Any, tuple[Tensor, Tensor] | None]:
    """The rotary embeddings of tokens `index` (B or 1, k), in the form the model takes them.

    Where a model takes one set of rows for the batch and samples differ in their tokens, it is
    given embeddings that turn nothing, and what to turn the image tokens by is returned beside: cos
    and sin (B, k, D), for pairs that lie side by side.
    """
    assert layout.rotary is not None
    form = layout.rotary[1]
    if value is None:
        return None, None
    if form == "batched":
        if isinstance(value, Tensor):
            return take(value, index), None
        return type(value)(take(part, index) for part in value), None
    if form == "complex":
        image, words = value
        if len(index) == 1:
            return (image[index[0]], words), None
        rows = image[index]
        turn = rows.real.repeat_interleave(2, -1), rows.imag.repeat_interleave(2, -1)
        return (torch.ones_like(rows[0]), words), turn
    first = text if form == "joint" else 0
    cos, sin = value
    if len(index) == 1:
        own = index[0] + first
        return tuple(torch.cat([part[:first], part[own]]) for part in (cos, sin)), None
    rows = index + first
    count = index.shape[1]
    still = (
        torch.cat([cos[:first], torch.ones_like(cos[:count])]),
        torch.cat([sin[:first], torch.zeros_like(sin[:count])]),
    )
    return still, (cos[rows], sin[rows])


def argument_names(module: torch.nn.Module) -> list[str]:
    """Names of the arguments of a module's `forward`, in order."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def read(names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """The argument `name` of a call; None where it is not given."""
    if name in kwargs:
        return kwargs[name]
    place = names.index(name) if name in names else len(args)
    return args[place] if place < len(args) else None


def replaced(
    names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], new: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with those in `new` instead of what was given."""
    given = list(args)
    others = dict(kwargs)
    for name, value in new.items():
        place = names.index(name)
        if name in others or place >= len(given):
            others[name] = value
        else:
            given[place] = value
    return tuple(given), others
