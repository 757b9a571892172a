"""Streams: the hidden states that run through a transformer block, in and out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from accel.family import Blocks


class Streams:
    """Reads streams from a block's arguments and makes a block's return value of them."""

    def __init__(self, block: torch.nn.Module, spec: Blocks) -> None:
        names = list(inspect.signature(type(block).forward).parameters)[1:]
        for stream in spec.streams:
            if stream not in names:
                raise ValueError(
                    f"{type(block).__name__}.forward takes no argument {stream!r}, which its "
                    f"family states; this version of diffusers is not supported for it"
                )
        self.spec, self._names = spec, names
        self._positions = {name: i for i, name in enumerate(names)}

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str) -> Any:
        """The value of the argument `name`, a stream or another, of a call of the block."""
        position = self._positions.get(name, len(args))
        return args[position] if position < len(args) else kwargs.get(name)

    def pick(self, value: Any, stream: str) -> torch.Tensor:
        """The value of `stream` among what a block returned."""
        found = value
        if len(self.spec.returns) > 1:
            found = value[self.spec.returns.index(stream)]
        if not isinstance(found, torch.Tensor):
            raise TypeError(
                f"a block returned {type(found).__name__} where {stream} was expected; this "
                f"denoiser supports methods at its output only (carrier='output')"
            )
        return found

    def ended(self, value: Any, stream: str) -> bool:
        """Whether a block that returned `value` ends `stream`, as last blocks do with the text."""
        return len(self.spec.returns) > 1 and value[self.spec.returns.index(stream)] is None

    def through(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        replaced: Mapping[str, Any] | None = None,
    ) -> Any:
        """What a block that changes nothing but `replaced` would return."""
        replaced = replaced or {}
        values = tuple(
            replaced[s] if s in replaced else self.read(args, kwargs, s) for s in self.spec.returns
        )
        return values[0] if len(values) == 1 else values

    @property
    def names(self) -> tuple[str, ...]:
        """The streams, by the names of the block's arguments."""
        return self.spec.streams

    def check_selectable(self) -> None:
        """Raise ValueError if the family does not say which arguments the batch does not share."""
        if self.spec.batched is None:
            raise ValueError(
                "which arguments of this model's blocks hold one entry per sample is not known, "
                "so samples of a batch cannot decide apart; set per_sample=False, or run samples "
                "one by one"
            )

    def select(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: torch.Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A block's arguments for some `rows` (R,) of the batch."""
        apart = {*self.spec.streams, *(self.spec.batched or ())}
        picked = tuple(
            _rows(value, rows) if name in apart else value
            for name, value in zip(self._names, args, strict=False)
        )
        named = {k: _rows(v, rows) if k in apart else v for k, v in kwargs.items()}
        return picked, named

    def merge(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any, rows: torch.Tensor
    ) -> Any:
        """What the block would have returned: `value` at `rows`, elsewhere what came in."""
        found: dict[str, torch.Tensor | None] = {}
        for stream in self.spec.returns:
            if self.ended(value, stream):
                found[stream] = None
                continue
            whole = self.read(args, kwargs, stream).clone()
            found[stream] = whole.index_copy_(0, rows, self.pick(value, stream))
        return self.through(args, kwargs, found)


def _rows(value: Any, rows: torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value if value.shape[0] == 1 else value.index_select(0, rows)
    if isinstance(value, tuple | list):
        return type(value)(_rows(v, rows) for v in value)
    return value
