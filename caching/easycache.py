"""EasyCache (2507.02860): skip the denoiser while its output is predicted to change little."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from accel.family import arguments_of, select_rows
from accel.method import Method, Site, check_fields

from .adaptive import Threshold, halves, norms, parts_of, read, refresh, rows_of, settle
from .forecasters import hold
from .latents import shared
from .state import Cache, State

LAST, COMPUTED, OUTPUT, RATE = "last input", "computed input", "output", "rate"


@dataclass(frozen=True)
class EasyCache(Method):
    """Skip the denoiser whole; the output follows the latents from where it was last computed.

    At computed steps k = mean|out - out'| / mean|in - in'| is measured against the computed step
    before. Predicted changes k mean|in_s - in_{s-1}| / mean|out'| add up from step to step until
    they reach the threshold. A skipped step returns in + (out' - in').

    Latents and output are compared on the channels that both have, which come first: a mask and a
    picture behind the latents (Wan image to video) take no part, a variance behind the output is
    reused.

    Attributes:
        threshold: on the sum; 0 skips nothing. Published: 0.025 on HunyuanVideo, 0.05 on Wan.
        warmup: first steps, all computed; at least two are, however few are asked for.
        tail: last steps, all computed.
        follow: the decision is made on the conditional evaluation (where it is apart, the first
            of a step), and the unconditional one follows. False: each decides for itself.
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch as published, so that samples share their decisions.

    Needs no calibration. Costs one host synchronisation per step after the warm-up.
    """

    threshold: float = 0.05
    warmup: int = 10
    tail: int = 1
    follow: bool = True
    per_sample: bool = True

    level: ClassVar[str] = "step"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=(self.threshold >= 0, "0 or more"),
            warmup=(self.warmup >= 1, "at least 1"),
            tail=(self.tail >= 0, "0 or more"),
        )

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"after {max(self.warmup, 2)} steps does not call the denoiser while the predicted "
            f"change adds up to less than {self.threshold:.1%}; how often depends on the sample; "
            f"keeps 3 latents per branch"
        )

    def install(self, site: Site) -> None:
        Follower(self, site).install()


class Follower:
    """EasyCache at work on the denoisers of one site."""

    def __init__(self, method: EasyCache, site: Site) -> None:
        self.method, self.site, self.label = method, site, "EasyCache:denoiser"
        self.rule = Threshold(method.threshold, True, method.warmup, method.tail)
        self.cache = Cache(site, hold, 1)
        self._lead: tuple[Any, list[bool]] = (None, [])

    def install(self) -> None:
        for name, denoiser in self.site.denoisers.items():
            handler = functools.partial(self._denoise, name, denoiser)
            self.site.patches.call(denoiser, handler, f"{self.label} on {name}")
        whole = {name: [""] for name in self.site.denoisers}
        self.site.report.skip_set("EasyCache", self.label, whole)

    def _denoise(
        self,
        name: str,
        denoiser: torch.nn.Module,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        state, _ = self.cache.enter(name, args, kwargs)
        latents: Tensor = next(iter(arguments_of(denoiser, args, kwargs).values()))
        parts = parts_of(state, self.site, len(latents), self.method.per_sample)
        key = (self.site.clock.step.run, name, self.site.clock.step.index)
        lead = self._lead[1] if self.method.follow and self._lead[0] == key else []
        computing, skipping = settle(state, self.rule, self._changes(state, latents, lead))
        if not lead:
            self._lead = (key, [not part.compute for part in parts])
        if skipping:
            noted = self.site.clock.call
            assert noted is not None
            noted.leave_out(self.label, "reused", len(skipping) / len(parts))
        stand_in = self._stand_in(state, latents) if skipping else None
        if not computing:
            leaves: list[Any] = [stand_in]
            spec = state.extra["structure"]
        elif not skipping:
            leaves, spec = tree_flatten(call(*args, **kwargs))
        else:
            rows = rows_of(computing, latents.device)
            some = select_rows(self.site.family, denoiser, args, kwargs, rows)
            leaves, spec = tree_flatten(call(**some))
            assert stand_in is not None
            leaves = [stand_in.index_copy(0, rows, leaves[0])]
        if len(leaves) != 1:
            raise ValueError(
                f"{name} returns {len(leaves)} values; EasyCache follows denoisers that return one"
            )
        output: Tensor = leaves[0]
        if computing:
            state.extra["structure"] = spec
            self._measure(state, latents, output, computing)
            refresh(state, COMPUTED, latents, computing)
            refresh(state, OUTPUT, output, computing)
        refresh(state, LAST, latents, parts)
        return tree_unflatten([output], spec)

    def _shared(self, latents: Tensor, output: Tensor) -> tuple[Tensor, Tensor, int]:
        return shared(latents, output, self.site.family.channels)

    def _leading(self, value: Tensor) -> Tensor:
        """The rows on which the batch decides: of the conditional half, where there are halves."""
        fused = self.site.family.fused
        count = halves(self.site)
        if count == 1 or not self.method.follow:
            return value
        return value.chunk(count)[fused.index("cond") if "cond" in fused else -1]

    def _changes(self, state: State, latents: Tensor, lead: list[bool]) -> list[float] | None:
        """What each part adds to its sum: infinite or 0 where another branch has decided."""
        step, parts, kept = self.site.clock.step, state.parts, state.extra
        if OUTPUT in kept and len(lead) == len(parts):
            return [0.0 if skips else torch.inf for skips in lead]
        free = self.rule.free(step.index - state.first, step.total - state.first)
        if not free or not all(RATE in part.extra for part in parts):
            return None
        now, output, _ = self._shared(latents, kept[OUTPUT])
        before, _, _ = self._shared(kept[LAST], kept[OUTPUT])
        moved = norms(self._leading(now - before), parts) / norms(self._leading(output), parts)
        return read(moved * torch.stack([part.extra[RATE] for part in parts]))

    def _measure(
        self, state: State, latents: Tensor, output: Tensor, computing: list[State]
    ) -> None:
        """k of the parts that compute, once there is a computed step to compare with."""
        old = state.extra.get(OUTPUT)
        if old is None:
            return
        now, out, _ = self._shared(latents, output)
        before, out_before, _ = self._shared(state.extra[COMPUTED], old)
        changed = norms(self._leading(out - out_before), state.parts)
        moved = norms(self._leading(now - before), state.parts)
        rates = torch.where(moved > 0, changed / moved, torch.zeros_like(moved))
        for part, rate in zip(state.parts, rates, strict=True):
            if part in computing:
                part.extra[RATE] = rate

    def _stand_in(self, state: State, latents: Tensor) -> Tensor:
        output: Tensor = state.extra[OUTPUT]
        now, kept, axis = self._shared(latents, output)
        before, _, _ = self._shared(state.extra[COMPUTED], output)
        moved = kept + (now - before).to(kept.dtype)
        rest = output.narrow(axis, moved.shape[axis], output.shape[axis] - moved.shape[axis])
        return torch.cat((moved, rest), axis) if rest.shape[axis] else moved
