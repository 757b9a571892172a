"""The attention half of FasterCache: extrapolate from the last two computed outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from accel.batch_parts import joined, part_of
from accel.memory import Kept
from accel.method import Site

from .attention import attention_modules
from .state import Cache, State


class AttentionSettings(Protocol):
    """What `FasterCache` decides about attention."""

    @property
    def attention_interval(self) -> int: ...

    def computes_attention(self, index: int, total: int) -> bool: ...

    def weights(self, anchors: Sequence[float], index: float, total: int) -> list[float]: ...


class ExtrapolatedAttention:
    """Runs denoisers with attention computed or extrapolated.

    Rows of a fused batch are kept apart by branch, so that a step that runs the conditional rows
    alone extrapolates from the same outputs.
    """

    def __init__(
        self, site: Site, settings: AttentionSettings, kinds: tuple[str, ...], method: str
    ) -> None:
        self.site, self.settings, self.kinds, self.method = site, settings, kinds, method
        self.label = f"{method}:attention"
        self.cache = Cache(site, self._weights, 2)
        self._parts: tuple[str, ...] = ("",)
        self._extrapolating = False
        self._paths: dict[str, list[str]] = {}

    def install(self) -> None:
        site = self.site
        for name, denoiser in site.denoisers.items():
            self._paths[name] = []
            if self.settings.attention_interval == 1:
                continue
            for path, kind, module in attention_modules(site.family, denoiser):
                if kind in self.kinds:
                    handler = functools.partial(self._stand_in, path)
                    site.patches.call(module, handler, f"{self.label} on {name}.{path}")
                    self._paths[name].append(path)
            self.cache.will_keep(name, [Kept(path) for path in self._paths[name]])
        site.report.skip_set(self.method, self.label, self._paths)

    def _weights(self, anchors: Sequence[float], index: float) -> list[float]:
        return self.settings.weights(anchors, index, self.site.clock.step.total)

    def run(
        self,
        name: str,
        call: Callable[..., Any],
        parts: tuple[str, ...],
        share: float,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Evaluate the denoiser on the rows of `parts`, a `share` of the batch."""
        state, step, told = self.cache.current, self.site.clock.step, self.site.clock.call
        assert state is not None and told is not None
        self._parts, first = parts, self._paths[name][:1]
        scheduled = bool(first) and not self.settings.computes_attention(step.index, step.total)
        self._extrapolating = scheduled and self._fresh(state, first[0])
        if self._extrapolating:
            told.leave_out(self.label, "forecast", share)
        return call(*args, **kwargs)

    def _fresh(self, state: State, path: str) -> bool:
        """Whether what is kept of the running parts is recent enough to extrapolate from."""
        kept = [state.histories.get(f"{path}@{part}") for part in self._parts]
        index, interval = self.site.clock.step.index, self.settings.attention_interval
        return all(h is not None and index - h.anchors[0] < interval for h in kept)

    def _stand_in(self, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state, index = self.cache.current, self.site.clock.step.index
        assert state is not None
        names = [f"{path}@{part}" for part in self._parts]
        if self._extrapolating:
            return joined([state.histories[name].forecast(index) for name in names])
        value = call(*args, **kwargs)
        for i, name in enumerate(names):
            state.keep(name, index, part_of(value, i, len(names)))
        return value
