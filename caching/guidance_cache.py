"""The guidance half of FasterCache: guess the unconditional branch from the conditional one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils._pytree import tree_map

from accel.batch_parts import cloned, is_tensor, joined, part_of, stream_of, tensors_in
from accel.branches import may_hold_both, rows_of_branch, same_samples
from accel.memory import Kept
from accel.method import Site

from .extrapolated_attention import ExtrapolatedAttention
from .forecasters import hold
from .frequency_delta import difference, grid_of, uncond_from
from .state import Cache, State

DELTA, GUIDED = "delta", "guided"
SWITCH = "set guidance_interval=1 to accelerate attention alone"


class GuidanceSettings(Protocol):
    """What `FasterCache` decides about guidance."""

    @property
    def guidance_interval(self) -> int: ...

    def computes_guidance(self, index: int, total: int) -> bool: ...

    def boosts(self, since: int, index: int, total: int) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Evaluation:
    """One call of a denoiser: its state, what runs it, and its arguments."""

    name: str
    state: State
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


class GuidanceCache:
    """Decides at the denoiser which branches are evaluated; attention decides for itself."""

    def __init__(
        self, site: Site, settings: GuidanceSettings, attention: ExtrapolatedAttention, method: str
    ) -> None:
        self.site, self.settings, self.attention, self.method = site, settings, attention, method
        self.label, self.cache = f"{method}:guidance", Cache(site, hold, 1)
        self._cond: dict[tuple[str, str], tuple[int, Any]] = {}
        site.clock.on_begin.append(lambda run: self._cond.clear())
        site.clock.on_end.append(lambda run: self._cond.clear())

    def install(self) -> None:
        for name, denoiser in self.site.denoisers.items():
            handler = functools.partial(self._denoise, name)
            self.site.patches.call(denoiser, handler, f"{self.method} on {name}")
            if self.settings.guidance_interval > 1:  # the difference and its low frequencies
                self.cache.will_keep(name, [Kept("", copies=2)])
        whole = {name: [""] for name in self.site.denoisers}
        self.site.report.skip_set(self.method, self.label, whole)

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.attention.cache.enter(name, args, kwargs)
        state, step = self.cache.enter(name, args, kwargs)
        run = functools.partial(self.attention.run, name, call)
        call_now = Evaluation(name, state, run, args, kwargs)
        branch, _, number = step.branch.partition("#")
        if may_hold_both(self.site, args, kwargs):
            return self._fused(call_now)
        if self.settings.guidance_interval > 1 and branch == "uncond":
            return self._uncond(call_now, self._cond.pop((name, number), None))
        value = run(("",), 1.0, args, kwargs)
        if self.settings.guidance_interval > 1 and branch == "cond":
            self._cond[name, number] = (step.index, cloned(value))
        return value

    def _fused(self, now: Evaluation) -> Any:
        order = self.site.family.fused
        self._check(now, stream_of(self.site.family.stream, now.args, now.kwargs))
        if self._skips(now.state) and self._is_guided(now):
            self._leave_out(0.5)
            rows = rows_of_branch(self.site, now.name, "cond", now.args, now.kwargs)
            cond = now.run(("cond",), 0.5, (), rows)
            both = {"cond": cond, "uncond": self._guess(now.state, cond)}
            return joined([both[branch] for branch in order])
        value = now.run(order, 1.0, now.args, now.kwargs)
        halves = {branch: part_of(value, i, 2) for i, branch in enumerate(order)}
        self._keep(now, halves["uncond"], halves["cond"])
        return value

    def _uncond(self, now: Evaluation, cond: tuple[int, Any] | None) -> Any:
        if cond is None or cond[0] != self.site.clock.step.index:
            raise ValueError(
                f"{type(self.site.pipe).__name__} evaluates the unconditional branch before the "
                f"conditional one, from which {self.method} would guess it; {SWITCH}"
            )
        self._check(now, stream_of(self.site.family.stream, now.args, now.kwargs))
        if self._skips(now.state):
            self._leave_out(1.0)
            return self._guess(now.state, cond[1])
        value = now.run(("",), 1.0, now.args, now.kwargs)
        self._keep(now, value, cond[1])
        return value

    def _skips(self, state: State) -> bool:
        step, kept = self.site.clock.step, state.histories.get(DELTA)
        if kept is None or self.settings.computes_guidance(step.index, step.total):
            return False
        return step.index - kept.anchors[0] < self.settings.guidance_interval

    def _leave_out(self, share: float) -> None:
        told = self.site.clock.call
        assert told is not None
        told.leave_out(self.label, "forecast", share)

    def _is_guided(self, now: Evaluation) -> bool:
        """Whether the halves of the batch are the branches of the same samples; looked at once."""
        if GUIDED not in now.state.extra:
            now.state.extra[GUIDED] = same_samples(self.site, now.args, now.kwargs)
        return bool(now.state.extra[GUIDED])

    def _check(self, now: Evaluation, value: Any) -> None:
        """Refuse what has no known grid, at the first evaluation."""
        first = self.site.clock.step.index == now.state.first
        if first and self.settings.guidance_interval > 1:
            for tensor in tensors_in(value):
                grid_of(tensor, self._arguments(now), SWITCH)

    def _arguments(self, now: Evaluation) -> Mapping[str, Any]:
        denoiser = self.site.denoisers[now.name]
        module = getattr(denoiser, "_orig_mod", denoiser)
        signature = inspect.signature(type(module).forward)
        return signature.bind(module, *now.args, **now.kwargs).arguments

    def _keep(self, now: Evaluation, uncond: Any, cond: Any) -> None:
        """Keep by how much the branches differ, if the next step guesses."""
        step = self.site.clock.step
        self._check(now, uncond)
        if self.settings.computes_guidance(step.index + 1, step.total):
            return
        told = self._arguments(now)
        pairs = zip(tensors_in(uncond), tensors_in(cond), strict=True)
        deltas = [difference(u, c, grid_of(u, told, SWITCH)) for u, c in pairs]
        now.state.keep(DELTA, step.index, deltas)

    def _guess(self, state: State, cond: Any) -> Any:
        step, history = self.site.clock.step, state.histories[DELTA]
        factors = self.settings.boosts(history.anchors[0], step.index, step.total)
        deltas = iter(history.forecast(step.index))
        return tree_map(
            lambda v: uncond_from(v, next(deltas), *factors) if is_tensor(v) else v, cond
        )
