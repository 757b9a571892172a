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
        self._spec = spec
        self._positions = {stream: names.index(stream) for stream in spec.streams}

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], stream: str) -> Any:
        """The value of `stream` among a block's arguments."""
        position = self._positions[stream]
        return args[position] if position < len(args) else kwargs.get(stream)

    def pick(self, value: Any, stream: str) -> torch.Tensor:
        """The value of `stream` among what a block returned."""
        found = value
        if len(self._spec.returns) > 1:
            found = value[self._spec.returns.index(stream)]
        if not isinstance(found, torch.Tensor):
            raise TypeError(
                f"a block returned {type(found).__name__} where {stream} was expected; this "
                f"denoiser supports methods at its output only (carrier='output')"
            )
        return found

    def through(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        replaced: Mapping[str, Any] | None = None,
    ) -> Any:
        """What a block that changes nothing but `replaced` would return."""
        replaced = replaced or {}
        values = tuple(
            replaced[s] if s in replaced else self.read(args, kwargs, s) for s in self._spec.returns
        )
        return values[0] if len(values) == 1 else values
