"""What calibration records of a stack of blocks: its entry, what it adds, the denoiser's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from accel.method import Site

from .adaptive import parts_of
from .blocks import Streams
from .forecasters import hold
from .span import Entry, Span
from .state import Cache, State


class Recorder:
    """Told of every call of a denoiser; `state` lives for a run, a branch and a shape."""

    def entered(self, state: State, entry: Entry) -> None:
        """The stack of blocks is reached."""

    def added(self, state: State, residual: Tensor) -> None:
        """The stack has added `residual` (B, S, D) to the hidden states."""

    def returned(self, state: State, output: Tensor) -> None:
        """The denoiser returns `output`."""


class Recorded(Span):
    """A span that always computes, and tells a recorder."""

    def __init__(self, site: Site, cache: Cache, label: str, recorder: Recorder) -> None:
        super().__init__(site, cache, label, self._compute)
        self.recorder = recorder

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        paths = super().attach(name, denoiser)
        self.site.patches.call(denoiser, self._returned, f"{self.label} on {name}")
        return paths

    def _compute(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        self.recorder.entered(state, entry)
        return parts_of(state, self.site, len(entry.hidden), per_sample=False), []

    def _leave(self, streams: Streams, args: Any, kwargs: Any, value: Any) -> Any:
        stream = self.site.family.stream
        residual = streams.pick(value, stream) - self._entered[stream]
        assert self.cache.current is not None
        self.recorder.added(self.cache.current, residual)
        return super()._leave(streams, args, kwargs, value)

    def _returned(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = call(*args, **kwargs)
        if self.cache.current is not None:
            self.recorder.returned(self.cache.current, tree_leaves(value)[0])
        return value


def record(site: Site, name: str, recorder: Recorder) -> None:
    """Attach `recorder` to every denoiser of `site`."""
    cache = Cache(site, hold, 1)
    for attribute, denoiser in site.denoisers.items():
        Recorded(site, cache, f"{name}:recording", recorder).attach(attribute, denoiser)
