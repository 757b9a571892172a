"""Carriers: where in the model something is kept and stood in for.

`output` skips the denoiser whole; `hidden` keeps its embedders and output layers and replaces the
stack of blocks; `module` replaces every attention and feed-forward output before its gate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

from accel.family import Family
from accel.memory import Kept
from accel.method import Site

from .blocks import Streams
from .policies import Policy
from .state import Cache

CARRIERS = ("output", "hidden", "module")


class Carrier:
    """A policy at work in one place; `label` names its skip set in the report.

    Args:
        since: steps before this one (counted from the denoiser's first) are not kept.
        forecasts: what stands in is a forecast even where one output is kept: a plan makes it.
    """

    def __init__(
        self,
        site: Site,
        cache: Cache,
        policy: Policy,
        method: str,
        since: int = 0,
        forecasts: bool = False,
    ) -> None:
        self.site, self.cache, self.policy, self.method = site, cache, policy, method
        self.since, self.label = since, f"{method}:{type(self).__name__}"
        self.forecasts = forecasts

    def install(self) -> None:
        skips = {name: self.attach(name, module) for name, module in self.site.denoisers.items()}
        for name, module in self.site.denoisers.items():
            self.cache.will_keep(name, self.outputs(module, skips[name]))
        self.site.report.skip_set(self.method, self.label, skips)

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        """Wrap what this carrier needs; returns the paths of the modules a skip leaves out."""
        raise AssertionError("a carrier attaches somewhere")

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        """What is kept of `denoiser`, of which a skip leaves out `skipped`."""
        return [Kept("")]

    def decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Ask the policy once for the denoiser call that begins, and tell the report."""
        state, step = self.cache.enter(name, args, kwargs)
        index, total = step.index - state.first, step.total - state.first
        state.compute = state.empty or self.policy.computes(index, total)
        if not state.compute:
            call = self.site.clock.call
            assert call is not None
            several = any(len(h.anchors) > 1 for h in state.histories.values())
            call.leave_out(self.label, "forecast" if several or self.forecasts else "reused")

    def keep(self, path: str, value: Any, own: bool = False) -> None:
        state, index = self.cache.current, self.site.clock.step.index
        assert state is not None
        if index - state.first >= self.since:
            state.keep(path, index, value, own)

    def forecast(self, path: str) -> Any:
        state = self.cache.current
        assert state is not None
        return state.histories[path].forecast(self.site.clock.step.index)

    @property
    def computing(self) -> bool:
        return self.cache.current is None or self.cache.current.compute

    def gate(self, name: str, denoiser: torch.nn.Module) -> None:
        """Decide at the denoiser, for carriers that act inside it."""

        def decide(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            self.decide(name, args, kwargs)
            return call(*args, **kwargs)

        self.site.patches.call(denoiser, decide, f"{self.label} on {name}")

    def stand_in(self, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Handle a module whose output is kept, and forecast on a skipped step."""
        if not self.computing:
            return self.forecast(path)
        value = call(*args, **kwargs)
        self.keep(path, value)
        return value

    def idle(self, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Handle a module whose output nobody reads on a skipped step."""
        state = self.cache.current
        if state is not None and not state.compute:
            return state.extra[path]()
        value = call(*args, **kwargs)
        if state is not None and path not in state.extra:
            state.extra[path] = blank_like(value)
        return value


class Output(Carrier):
    """The denoiser's output: a skipped step does not call it at all."""

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        self.site.patches.call(
            denoiser, functools.partial(self._denoise, name), f"{self.label} on {name}"
        )
        return [""]

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.decide(name, args, kwargs)
        return self.stand_in("", call, *args, **kwargs)


class Hidden(Carrier):
    """The hidden states after the last block; no block runs on a skipped step."""

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        blocks = self.site.family.flat_blocks(denoiser)
        self.gate(name, denoiser)
        for path, block, spec in blocks:
            streams, last = Streams(block, spec), path == blocks[-1][0]
            handler = functools.partial(self._block, streams, last)
            self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
        return [path for path, _, _ in blocks]

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        path, _, spec = self.site.family.flat_blocks(denoiser)[-1]
        return [Kept(path, spec.returns.index(self.site.family.stream))]

    def _block(
        self, streams: Streams, last: bool, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        stream = self.site.family.stream
        if self.computing:
            value = call(*args, **kwargs)
            if last:
                self.keep("", streams.pick(value, stream))
            return value
        if last:
            return streams.through(args, kwargs, {stream: self.forecast("")})
        return streams.through(args, kwargs)


class Modules(Carrier):
    """The output of every attention and feed-forward module, before the gate."""

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        self.gate(name, denoiser)
        skipped = []
        for path, block, spec in self.site.family.flat_blocks(denoiser):
            for part in (*spec.modules, *spec.idle):
                module, full = block.get_submodule(part), f"{path}.{part}"
                handler = self.idle if part in spec.idle else self.stand_in
                self.site.patches.call(
                    module, functools.partial(handler, full), f"{self.label} on {name}.{full}"
                )
                skipped.append(full)
        return skipped

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        blocks = self.site.family.flat_blocks(denoiser)
        idle = {f"{path}.{part}" for path, _, spec in blocks for part in spec.idle}
        return [Kept(path) for path in skipped if path not in idle]


def blank_like(value: Any) -> Callable[[], Any]:
    """A maker of structures shaped like `value`, for readers that use nothing but the shape.

    Uninitialised, not stride 0: T2I adapters and FreeU write into what they are given.
    """

    def maker(leaf: Any) -> Callable[[], Any]:
        if not isinstance(leaf, torch.Tensor):
            return lambda: leaf
        return functools.partial(torch.empty, leaf.shape, dtype=leaf.dtype, device=leaf.device)

    makers = tree_map(maker, value)
    return lambda: tree_map(lambda make: make(), makers)


def supported(carrier: str, family: Family) -> bool:
    """Whether `carrier` can be installed on models of `family`."""
    if carrier == "output":
        return True
    if carrier == "module":
        return any(blocks.modules for blocks in family.blocks)
    return bool(family.blocks)


KINDS: dict[str, type[Carrier]] = {"output": Output, "hidden": Hidden, "module": Modules}
