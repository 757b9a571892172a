"""The span carrier: a run of blocks of which a skip keeps what they added last time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from accel.family import arguments_of
from accel.memory import Kept
from accel.method import Site

from .adaptive import of_part, rows_of
from .blocks import Streams
from .state import Cache, State


class Judge(Protocol):
    """Decides before the span runs, from what enters it."""

    def __call__(self, state: State, entry: Entry) -> tuple[list[State], list[State]]:
        """(parts that compute, parts that skip)."""
        ...


class Entry:
    """What is known when the span is reached.

    Attributes:
        hidden: the hidden states (B, S, D) that enter the span.
        origin: those that entered the first block (B, S, D).
        block: the block the span begins with, described by `spec`.
        called: the arguments of the denoiser's call by name, latents first.
    """

    def __init__(
        self,
        hidden: Tensor,
        origin: Tensor,
        block: torch.nn.Module,
        streams: Streams,
        arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
        called: Callable[[], dict[str, Any]],
    ) -> None:
        self.hidden, self.origin, self.block = hidden, origin, block
        self.spec, self._called = streams.spec, called
        self._streams, self._arguments = streams, arguments

    @property
    def called(self) -> dict[str, Any]:
        return self._called()

    @property
    def probe(self) -> Tensor:
        """What the blocks before the span added to the hidden states (B, S, D)."""
        return self.hidden - self.origin

    def argument(self, name: str) -> Any:
        """The argument `name` of the call of `block`; None where it is not given."""
        return self._streams.read(*self._arguments, name)


class Span:
    """Blocks of one denoiser, all but the `first` and the `last` few.

    A skip hands on what entered plus a forecast of what the blocks added, kept for every part of
    the batch. `first` blocks run always, and what they add may be judged; `last` blocks run after
    the forecast.

    Class attributes:
        whole: keep what the first blocks added too, so that a skip hands on what entered the first
            block plus the forecast.
    """

    whole: ClassVar[bool] = False

    def __init__(
        self, site: Site, cache: Cache, label: str, judge: Judge, first: int = 0, last: int = 0
    ) -> None:
        self.site, self.cache, self.label, self.judge = site, cache, label, judge
        self.first, self.last = first, last
        self._called: Callable[[], dict[str, Any]] = dict
        self._origin: Tensor | None = None
        self._entered: dict[str, Tensor] = {}
        self._decided: tuple[list[State], list[State]] = ([], [])

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        """Wrap the blocks; returns the paths of those a skip leaves out."""
        blocks = self.site.family.flat_blocks(denoiser)
        if self.first + self.last >= len(blocks):
            raise ValueError(
                f"{self.label.split(':')[0]} needs at least {self.first + self.last + 1} blocks, "
                f"{name} has {len(blocks)}"
            )

        def enter(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.cache.enter(name, args, kwargs)
            self._called = functools.partial(arguments_of, denoiser, args, kwargs)
            try:
                return call(*args, **kwargs)
            finally:
                self._called, self._origin, self._entered = dict, None, {}

        self.site.patches.call(denoiser, enter, f"{self.label} on {name}")
        inside = range(self.first, len(blocks) - self.last)
        for i, (path, block, spec) in enumerate(blocks[: inside.stop]):
            streams = Streams(block, spec)
            handler: Callable[..., Any] | None = None
            if i in inside:
                handler = functools.partial(
                    self._inside, streams, block, i == inside[0], i == inside[-1]
                )
            elif i == 0:
                handler = functools.partial(self._before, streams)
            if handler is not None:
                self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
        path, _, spec = blocks[inside[-1]]
        main = self.site.family.stream
        kept = {
            s: Kept(path, spec.returns.index(s)) for s in spec.returns if self.last or s == main
        }
        watched = getattr(self.judge, "watched", 0)
        self.cache.will_keep(name, kept.values(), [replace(kept[main], copies=watched)])
        return [path for path, _, _ in blocks[inside.start : inside.stop]]

    def _before(self, streams: Streams, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._origin = streams.read(args, kwargs, self.site.family.stream)
        return call(*args, **kwargs)

    def _enter(self, streams: Streams, block: Any, args: Any, kwargs: Any) -> None:
        state = self.cache.current
        assert state is not None
        main = self.site.family.stream
        carried = streams.names if self.last else (main,)
        self._entered = {stream: streams.read(args, kwargs, stream) for stream in carried}
        hidden = self._entered[main]
        origin = hidden if self._origin is None else self._origin
        entry = Entry(hidden, origin, block, streams, (args, kwargs), self._called)
        self._decided = self.judge(state, entry)
        if self.whole:
            self._entered[main] = origin
        if len(state.parts) > 1:
            streams.check_selectable()
        skipping = self._decided[1]
        if skipping:
            call = self.site.clock.call
            assert call is not None
            lengths = [len(h.anchors) for part in skipping for h in part.histories.values()]
            action = "forecast" if max(lengths) > 1 else "reused"
            call.leave_out(self.label, action, len(skipping) / len(state.parts))

    def _inside(
        self,
        streams: Streams,
        block: torch.nn.Module,
        entry: bool,
        leaves: bool,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if entry:
            self._enter(streams, block, args, kwargs)
        computing, skipping = self._decided
        if not skipping:
            value = call(*args, **kwargs)
        elif not computing:
            value = streams.through(args, kwargs)
        else:
            rows = rows_of(computing, self._entered[self.site.family.stream].device)
            some, named = streams.select(args, kwargs, rows)
            value = streams.merge(args, kwargs, call(*some, **named), rows)
        return self._leave(streams, args, kwargs, value) if leaves else value

    def _leave(self, streams: Streams, args: Any, kwargs: Any, value: Any) -> Any:
        computing, skipping = self._decided
        index, entered, self._entered = self.site.clock.step.index, self._entered, {}
        found = {}
        for stream, before in entered.items():
            after = streams.pick(value, stream)
            for part in computing:
                added = of_part(after, part) - of_part(before, part)
                part.keep(stream, index, added, own=True)
            for part in skipping:
                stand_in = of_part(before, part) + self.stand_in(part, stream, index)
                if part.rows is None:
                    after = stand_in
                else:
                    after = after.index_copy(0, part.rows.to(after.device), stand_in)
            found[stream] = after
        if not skipping:
            return value
        others = {
            stream: None if streams.ended(value, stream) else streams.pick(value, stream)
            for stream in streams.names
            if stream not in found
        }
        return streams.through(args, kwargs, {**others, **found})

    def stand_in(self, part: State, stream: str, index: int) -> Tensor:
        """What the blocks would have added to the rows of `part`."""
        return part.histories[stream].forecast(index)
