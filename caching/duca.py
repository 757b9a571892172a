"""DuCa (2412.18911): ToCa on every other step between full ones, plain reuse on the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from accel.memory import Kept
from accel.method import Site

from .blocks import Streams
from .forecasters import hold
from .policies import explain_schedule, schedule
from .state import Cache
from .toca import ScoredTokens, ToCa

FINAL = "final"


@dataclass(frozen=True)
class DuCa(ToCa):
    """As `ToCa` on the 1st, 3rd, ... step after a full one; the 2nd, 4th, ... run no block at all.

    Attributes:
        interval: steps from one full step to the next; 1 skips nothing, 2 is `ToCa`.
        ratio: share of the tokens that is computed, before the factors below.
        warmup: first steps, all full (per expert in Wan 2.2).
        ease: how much longer intervals are at the start; 0 keeps them all the same.
        step_weight: the share goes from 1 - w at the first step to 1 + w at the last.
        layer_weight: the share goes from 1 + w at the first layer to 1 - w at the last.
        boost: factor of feed-forwards.
        age_weight: how much tokens gain for every `interval` of steps they were not computed.
        bonus: share by which the best token of every 2 by 2 cell of a known grid gains.
        last: also compute the final step in full.

    Steps that run no block reuse the hidden states that left the last block the step before. The
    schedule is the one released for Open-Sora. Keeps the output of every module and one hidden
    state per branch. A static schedule: samples of a batch choose their tokens apart, and no step
    waits for the host.
    """

    warmup: int = 3
    ease: float = 0.0

    def expect(self, site: Site, steps: int) -> str:
        full = schedule(self.policy, steps)
        offsets = [i - max(f for f in full if f <= i) for i in range(steps) if i not in full]
        some = sum(offset % 2 for offset in offsets)
        return explain_schedule(
            self.policy,
            steps,
            f"{some} others run every feed-forward for some tokens, {len(offsets) - some} run no "
            f"block; keeps the output of every module",
        )

    def install(self, site: Site) -> None:
        DualTokens(site, Cache(site, hold, 1), self.policy, self).install()


class DualTokens(ScoredTokens):
    """Passes by all blocks on even steps after a full one."""

    @property
    def blocks_label(self) -> str:
        return f"{self.label}:blocks"

    def install(self) -> None:
        super().install()
        blocks = {
            name: [path for path, _, _ in self.site.family.flat_blocks(module)]
            for name, module in self.site.denoisers.items()
        }
        self.site.report.skip_set(self.method, self.blocks_label, blocks)
        for name, module in self.site.denoisers.items():
            path, _, spec = self.site.family.flat_blocks(module)[-1]
            final = Kept(path, spec.returns.index(self.site.family.stream))
            self.cache.will_keep(name, (), [final])

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        skipped = super().attach(name, denoiser)
        blocks = self.site.family.flat_blocks(denoiser)
        for path, block, spec in blocks:
            handler = functools.partial(self.block, Streams(block, spec), path == blocks[-1][0])
            self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
        return skipped

    def decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().decide(name, args, kwargs)
        state, index = self.cache.current, self.site.clock.step.index
        assert state is not None
        if state.compute:
            state.extra["full"] = index
        state.extra["bare"] = not state.compute and (index - state.extra["full"]) % 2 == 0
        if state.extra["bare"]:
            call = self.site.clock.call
            assert call is not None
            del call.skipped[self.label]
            call.leave_out(self.blocks_label, "reused")

    def block(
        self, streams: Streams, last: bool, run: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Handle a block: not run on a bare step, where the last one gives what it gave before."""
        state, stream = self.cache.current, self.site.family.stream
        assert state is not None
        if not state.extra["bare"]:
            value = run(*args, **kwargs)
            if last:
                state.extra[FINAL] = streams.pick(value, stream).detach().clone()
            return value
        kept = {stream: state.extra[FINAL].clone()} if last else None
        return streams.through(args, kwargs, kept)
