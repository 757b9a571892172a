"""ToCa (2410.05317) and DuCa (2412.18911): recompute the tokens that matter most."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from accel.family import Blocks, Family
from accel.method import Method, Site, check_fields
from accel.token_grid import Grid, token_grid

from .forecasters import hold
from .policies import Interval, Policy, explain_schedule, schedule
from .state import Cache, State
from .tokens import PARTS, Place, Tokens, feed_forwards, has_feed_forwards

MUCH = 0.7
"""Share of the tokens above which gathering them saves little: a rule of thumb, not measured."""


@dataclass(frozen=True)
class Eased(Interval):
    """Intervals that are longer at the start, as ToCa has them on DiT.

    With s steps still to come of T, the interval is round(interval / (1 + ease - 2 ease s / T)),
    and 2 where 0.2 <= s / T < 0.4; a step with s divisible by it, as it was at the last computed
    step, is computed.
    """

    ease: float = 0.0

    def computes(self, index: int, total: int) -> bool:
        if self.ease == 0 or self.interval == 1:
            return super().computes(index, total)
        return index in _eased_steps(total, self)


@lru_cache(256)
def _eased_steps(total: int, rule: Eased) -> frozenset[int]:
    steps, length = set(), 1
    for index in range(total):
        left = total - 1 - index
        if index < rule.warmup or left % length == 0 or (rule.last and not left):
            steps.add(index)
            eased = rule.interval / (1 + rule.ease - 2 * rule.ease * left / total)
            sensitive = int(0.2 * total) <= left < int(0.4 * total)
            length = 2 if sensitive else max(round(eased), 1)
    return frozenset(steps)


@dataclass(frozen=True)
class ToCa(Method):
    """Between full steps reuse attention, and compute feed-forwards for a few tokens only.

    Attributes:
        interval: steps from one full step to the next; 1 skips nothing.
        ratio: share of the tokens that is computed, before the factors below.
        warmup: first steps, all full (per expert in Wan 2.2).
        ease: how much longer intervals are at the start; 0 keeps them all the same.
        step_weight: the share goes from 1 - w at the first step to 1 + w at the last.
        layer_weight: the share goes from 1 + w at the first layer to 1 - w at the last.
        boost: factor of feed-forwards; attention, computed for no tokens, gave its share to them.
        age_weight: how much tokens gain for every `interval` of steps they were not computed.
        bonus: share by which the best token of every 2 by 2 cell of a known grid gains.
        last: also compute the final step in full.

    Defaults are those released for DiT; for FLUX: interval=5, ratio=0.1, warmup=3, ease=0,
    step_weight=0, layer_weight=0.5, boost=0.4, age_weight=0, bonus=0. Tokens are scored by the norm
    of their values in attention at the last full step, the smallest first: no attention map is
    needed. Only feed-forwards that treat every token alone are computed in part; other modules are
    reused. Keeps the output of every module per branch. A static schedule: samples of a batch
    choose their tokens apart, and no step waits for the host.
    """

    interval: int = 3
    ratio: float = 0.07
    warmup: int = 1
    ease: float = 0.4
    step_weight: float = 2.0
    layer_weight: float = -0.2
    boost: float = 2.5
    age_weight: float = 0.25
    bonus: float = 0.6
    last: bool = False

    level: ClassVar[str] = "tokens"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            interval=(self.interval >= 1, "at least 1"),
            ratio=(0 <= self.ratio <= 1, "from 0 to 1"),
            warmup=(self.warmup >= 1, "at least 1"),
            ease=(0 <= self.ease < 1, "from 0 to below 1"),
            boost=(self.boost >= 0, "0 or more"),
            age_weight=(self.age_weight >= 0, "0 or more"),
            bonus=(self.bonus >= 0, "0 or more"),
        )

    @property
    def policy(self) -> Policy:
        return Eased(self.interval, self.warmup, self.last, self.ease)

    def supports(self, family: Family) -> bool:
        return super().supports(family) and has_feed_forwards(family)

    def share(self, depth: float, index: int, total: int) -> float:
        """Share of the tokens computed at step `index` of `total`, `depth` (0 to 1) in the model.

        ratio * boost * (1 + w - 2 w depth) * (1 + v - 2 v s / total), s steps before the last, for
        the weights w of layers and v of steps; kept between 0 and 1.
        """
        layer = 1 + self.layer_weight * (1 - 2 * depth)
        step = 1 + self.step_weight * (1 - 2 * (total - 1 - index) / total)
        return min(max(self.ratio * self.boost * layer * step, 0.0), 1.0)

    def expect(self, site: Site, steps: int) -> str:
        full = set(schedule(self.policy, steps))
        shares = [
            self.share(place.depth, index, steps)
            for module in site.denoisers.values()
            for place in feed_forwards(site.family, module).values()
            for index in range(steps)
            if index not in full
        ]
        mean = sum(shares) / max(len(shares), 1)
        note = "; gathering so many saves little, lower ratio" if mean > MUCH else ""
        return explain_schedule(
            self.policy,
            steps,
            f"on the others attention is reused and feed-forwards run for {mean:.0%} of their "
            f"tokens on average{note}; keeps the output of every module",
        )

    def install(self, site: Site) -> None:
        ScoredTokens(site, Cache(site, hold, 1), self.policy, self).install()


class ScoredTokens(Tokens):
    """Chooses tokens by the norm of their values, their age, and their place."""

    def __init__(self, site: Site, cache: Cache, policy: Policy, settings: ToCa) -> None:
        super().__init__(site, cache, policy, type(settings).__name__)
        self.settings = settings

    def decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().decide(name, args, kwargs)
        state = self.cache.current
        assert state is not None
        if "grid" not in state.extra:
            state.extra["grid"] = token_grid(self.site.denoisers[name], args, kwargs)

    def prepare(self, name: str, place: Place, block: torch.nn.Module, spec: Blocks) -> None:
        own = (m for m in spec.modules if m not in PARTS and spec.attention.get(m) != "cross")
        attention = block.get_submodule(next(own, ""))
        part = "add_v_proj" if place.text else "to_v"
        projection = getattr(attention, part, None)
        if projection is None or getattr(attention, "fused_projections", False):
            raise ValueError(
                f"{self.method} scores tokens by their values, and {type(attention).__name__} of "
                f"{name} has no {part} of its own; call unfuse_qkv_projections() if it was fused"
            )
        heads = getattr(attention, "heads", 1)
        handler = functools.partial(self.score, place, heads)
        self.site.patches.call(projection, handler, f"{self.label} on {name}.{place.path}")

    def score(
        self, place: Place, heads: int, run: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Handle the projection to values (B, S, D): its norms per head are kept."""
        value = run(*args, **kwargs)
        state = self.cache.current
        if state is not None and state.compute:
            count = heads if value.shape[-1] % heads == 0 else 1
            norms = value.detach().unflatten(-1, (count, -1)).float().norm(dim=-1)
            state.extra[f"{place.path}:score"] = normalize((1 - norms).sum(-1), dim=1)
        return value

    def renew(self, state: State, place: Place, index: int, value: Tensor) -> None:
        super().renew(state, place, index, value)
        state.extra[f"{place.path}:age"] = value.new_zeros(value.shape[:2], dtype=torch.float32)

    def choose(self, state: State, place: Place, tokens: Tensor) -> Tensor | None:
        step, settings = self.site.clock.step, self.settings
        index, total = step.index - state.first, step.total - state.first
        count = int(settings.share(place.depth, index, total) * tokens.shape[1] + 1e-6)
        if count >= tokens.shape[1]:
            return None
        age = state.extra[f"{place.path}:age"]
        score = state.extra[f"{place.path}:score"] + settings.age_weight * age / settings.interval
        if not place.text:
            score = favour_cells(score, state.extra["grid"], settings.bonus)
        chosen = score.topk(count, dim=1).indices
        age.add_(1).scatter_(1, chosen, 0)
        return chosen


def favour_cells(score: Tensor, grid: Grid | None, bonus: float) -> Tensor:
    """`score` (B, S) where the best token of every 2 by 2 cell gains `bonus` of its size.

    Args:
        grid: frames, rows and columns of the last tokens; None leaves all scores as they are.
    """
    if grid is None or not bonus or grid[0] * grid[1] * grid[2] > score.shape[1]:
        return score
    frames, rows, columns = grid
    before = score.shape[1] - frames * rows * columns
    cells = score[:, before:].unflatten(1, grid).flatten(0, 1)
    best = max_pool2d(cells[:, None], 2, ceil_mode=True)[:, 0]
    best = best.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :rows, :columns]
    cells = torch.where(cells == best, cells + bonus * cells.abs(), cells)
    return torch.cat([score[:, :before], cells.view(len(score), -1)], dim=1)
