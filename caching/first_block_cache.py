"""FirstBlockCache (ParaAttention): skip all blocks but the first while its residual is steady."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from accel.family import Family
from accel.method import Method, Site, check_fields

from .blocks import Streams
from .forecasters import hold
from .state import Cache

FIRST, REST = "first", "rest"


@dataclass(frozen=True)
class FirstBlockCache(Method):
    """Run the first block; if its residual changed little, reuse what the others added last time.

    Attributes:
        threshold: largest relative change, mean|r - r_ref| / mean|r_ref|, of the first block's
            residual against the last fully computed step at which the rest is reused. 0 skips
            nothing; published 0.08 (FLUX), 0.06 (HunyuanVideo).

    The change is a mean over the batch, so samples of one batch share their decisions. Costs one
    host synchronisation per evaluation of the denoiser.
    """

    threshold: float = 0.08

    level: ClassVar[str] = "blocks"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(self, threshold=(self.threshold >= 0, "0 or more"))

    def supports(self, family: Family) -> bool:
        return bool(family.blocks)

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"reuses all blocks but the first while its residual changes by less than "
            f"{self.threshold:.0%}; how often depends on the sample; keeps "
            f"2 hidden states per branch"
        )

    def install(self, site: Site) -> None:
        cache = Cache(site, hold, 1)
        label = "FirstBlockCache:blocks"
        skips = {
            name: _Span(site, cache, label, self.threshold).attach(name, module)
            for name, module in site.denoisers.items()
        }
        site.report.skip_set("FirstBlockCache", label, skips)


class _Span:
    """All blocks of one denoiser but the first."""

    def __init__(self, site: Site, cache: Cache, label: str, threshold: float) -> None:
        self.site, self.cache, self.label, self.threshold = site, cache, label, threshold
        self._entry: torch.Tensor | None = None

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        blocks = self.site.family.flat_blocks(denoiser)
        if len(blocks) < 2:
            raise ValueError(f"FirstBlockCache needs at least 2 blocks, {name} has {len(blocks)}")

        def enter(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.cache.enter(name, args, kwargs)
            return call(*args, **kwargs)

        self.site.patches.call(denoiser, enter, f"{self.label} on {name}")
        for i, (path, block, spec) in enumerate(blocks):
            streams = Streams(block, spec)
            handler = functools.partial(self._rest, streams, i == len(blocks) - 1)
            if i == 0:
                handler = functools.partial(self._first, streams)
            self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
        return [path for path, _, _ in blocks[1:]]

    def _first(self, streams: Streams, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stream, state = self.site.family.stream, self.cache.current
        assert state is not None
        value = call(*args, **kwargs)
        self._entry = streams.pick(value, stream)
        residual = self._entry - streams.read(args, kwargs, stream)
        reference = state.extra.get(FIRST)
        state.compute = reference is None or not self._steady(residual, reference)
        if state.compute:
            state.extra[FIRST] = residual
        else:
            call_now = self.site.clock.call
            assert call_now is not None
            call_now.leave_out(self.label, "reused")
        return value

    def _steady(self, residual: torch.Tensor, reference: torch.Tensor) -> bool:
        norm = functools.partial(torch.linalg.vector_norm, ord=1, dtype=torch.float32)
        return bool(norm(residual - reference) / norm(reference) < self.threshold)

    def _rest(
        self, streams: Streams, last: bool, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        stream, state = self.site.family.stream, self.cache.current
        assert state is not None and self._entry is not None
        if state.compute:
            value = call(*args, **kwargs)
            if last:
                added = streams.pick(value, stream) - self._entry
                state.keep(REST, self.site.clock.step.index, added)
                self._entry = None
            return value
        if not last:
            return streams.through(args, kwargs)
        added = state.histories[REST].forecast(self.site.clock.step.index)
        value, self._entry = self._entry + added, None
        return streams.through(args, kwargs, {stream: value})
