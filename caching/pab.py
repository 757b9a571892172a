"""PAB (2408.12588): broadcast the output of attention to the steps that follow, by kind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from accel.family import Family
from accel.memory import Kept
from accel.method import Method, Site, check_fields
from accel.noise import level_at

from .attention import attention_modules, feed_forward_parts, kinds_of
from .carriers import blank_like
from .forecasters import hold
from .state import Cache, State

FEED_FORWARD = "feed-forward"


@dataclass(frozen=True)
class PAB(Method):
    """Compute attention every so many steps, each kind at its own interval, and reuse it between.

    Attributes:
        spatial: steps from one computed attention within frames to the next; 1 reuses none.
        temporal: the same of attention across frames.
        full: of attention over all tokens at once, with or without the text.
        cross: of attention to the text alone.
        feed_forward: of what is not attention.
        window: noise between which outputs are reused, as fractions of the training timesteps, so
            that a published (100, 850) is (0.1, 0.85) on every scheduler: noise levels of a flow
            model, and for others those of these timesteps. 0 and 1 are no bounds.

    Published: CogVideoX full=2, window (0.1, 0.85); Latte 2, 3, 6 in (0.1, 0.8); Open-Sora 2, 4, 6
    in (0.45, 0.93). Keeps one output per attention module and branch; branches are kept apart. A
    static schedule.
    """

    spatial: int = 2
    temporal: int = 4
    full: int = 2
    cross: int = 6
    feed_forward: int = 1
    window: tuple[float, float] = (0.1, 0.85)

    level: ClassVar[str] = "attention"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        low, high = self.window
        names = ("spatial", "temporal", "full", "cross", "feed_forward")
        check_fields(
            self,
            **{name: (getattr(self, name) >= 1, "at least 1") for name in names},
            window=(0 <= low < high <= 1, "two rising fractions from 0 to 1"),
        )

    def intervals(self, family: Family) -> dict[str, int]:
        """Steps from one computation to the next of every kind that `family` has."""
        fields = {"self": "full"}
        found = {kind: getattr(self, fields.get(kind, kind)) for kind in kinds_of(family)}
        return {k: n for k, n in {**found, FEED_FORWARD: self.feed_forward}.items() if n > 1}

    def supports(self, family: Family) -> bool:
        return bool(kinds_of(family))

    def expect(self, site: Site, steps: int) -> str:
        intervals = self.intervals(site.family)
        whole = sum(all(i % n == 0 for n in intervals.values()) for i in range(steps))
        each = ", ".join(f"{kind} every {n}" for kind, n in intervals.items()) or "everything"
        low, high = self.window
        bound = "" if self.window == (0, 1) else f" (all outside of timesteps {low:g} to {high:g})"
        return (
            f"computes {whole} of {steps} steps whole{bound}; on the others {each} steps; keeps 1 "
            f"output per module and branch"
        )

    def install(self, site: Site) -> None:
        broadcast = _Broadcast(site, self)
        skips = {name: broadcast.attach(name, module) for name, module in site.denoisers.items()}
        for kind in broadcast.intervals:
            paths = {name: found.get(kind, []) for name, found in skips.items()}
            site.report.skip_set("PAB", f"PAB:{kind}", paths)
        if not broadcast.intervals:
            site.report.skip_set("PAB", "PAB:nothing", {name: [] for name in skips})


class _Broadcast:
    """PAB at work on one pipeline."""

    def __init__(self, site: Site, settings: PAB) -> None:
        self.site, self.settings = site, settings
        self.cache = Cache(site, hold, 1)
        self.intervals = settings.intervals(site.family)
        self._held: set[str] = set()
        self._wanted: set[str] = set()
        self._inside: tuple[int, list[bool]] = (0, [])

    def attach(self, name: str, denoiser: torch.nn.Module) -> dict[str, list[str]]:
        """Wrap what may be reused; returns the paths of each kind."""
        patches, found = self.site.patches, dict[str, list[str]]()
        outputs: list[Kept] = []
        patches.call(denoiser, functools.partial(self._denoise, name), f"PAB on {name}")

        def wrap(kind: str, path: str, module: torch.nn.Module, handler: Any) -> None:
            if kind in self.intervals:
                patches.call(module, functools.partial(handler, kind, path), f"PAB on {path}")
                found.setdefault(kind, []).append(path)
                outputs.extend([Kept(path)] if handler == self._stand_in else [])

        for path, kind, module in attention_modules(self.site.family, denoiser):
            wrap(kind, path, module, self._stand_in)
        for path, block, spec in self.site.family.flat_blocks(denoiser):
            kept, idle = feed_forward_parts(spec)
            for part in (*kept, *idle):
                handler = self._stand_in if part in kept else self._idle
                wrap(FEED_FORWARD, f"{path}.{part}", block.get_submodule(part), handler)
        self.cache.will_keep(name, outputs)
        self._first = {kind: paths[0] for kind, paths in found.items()}
        return found

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state, step = self.cache.enter(name, args, kwargs)
        told = self.site.clock.call
        assert told is not None
        self._held, self._wanted = set(), set()
        for kind, interval in self.intervals.items():
            if self._reuses(state, interval, step.index) and self._fresh(state, kind, step.index):
                self._held.add(kind)
                told.leave_out(f"PAB:{kind}", "reused")
            elif self._reuses(state, interval, step.index + 1):
                self._wanted.add(kind)
        return call(*args, **kwargs)

    def _reuses(self, state: State, interval: int, index: int) -> bool:
        """Whether the schedule reuses at step `index`; counted from the denoiser's first."""
        return (index - state.first) % interval != 0 and self._in_window(index)

    def _fresh(self, state: State, kind: str, index: int) -> bool:
        """A branch may have been left out for some steps, as guidance in an interval is."""
        history = state.histories.get(self._first[kind])
        return history is not None and index - history.anchors[0] < self.intervals[kind]

    def _in_window(self, index: int) -> bool:
        run = self.site.clock.run
        assert run is not None
        if self._inside[0] != run.number:
            self._inside = (run.number, inside(self.site.pipe, run.sigmas, self.settings.window))
        return index < len(self._inside[1]) and self._inside[1][index]

    def _stand_in(
        self, kind: str, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        state, index = self.cache.current, self.site.clock.step.index
        assert state is not None
        if kind in self._held:
            return state.histories[path].forecast(index)
        value = call(*args, **kwargs)
        if kind in self._wanted:
            state.keep(path, index, value)
        return value

    def _idle(
        self, kind: str, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        state = self.cache.current
        assert state is not None
        if kind in self._held:
            return state.extra[path]()
        value = call(*args, **kwargs)
        state.extra.setdefault(path, blank_like(value))
        return value


def inside(pipe: Any, sigmas: list[float | None], window: tuple[float, float]) -> list[bool]:
    """For every step whether its noise level lies strictly between the bounds of `window`.

    Raises:
        ValueError: the scheduler does not tell its noise levels.
    """
    low, high = window
    if window == (0, 1):
        return [True] * len(sigmas)
    known = [sigma for sigma in sigmas if sigma is not None]
    if len(known) < len(sigmas):
        raise ValueError(
            f"{type(pipe.scheduler).__name__} does not tell its noise levels, which PAB's window "
            f"is made of; set window=(0.0, 1.0)"
        )
    above, below = level_at(pipe.scheduler, low), level_at(pipe.scheduler, high)
    return [(low == 0 or s > above) and (high == 1 or s < below) for s in known]
