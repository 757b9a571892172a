"""ClusCa (2509.10312): recompute one token of every cluster, hand its value to the others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields

from .blocks import Streams
from .clusters import assign, one_of_each
from .forecasters import taylor
from .policies import Interval, Policy, explain_schedule
from .state import Cache, State
from .tokens import Place, Tokens, feed_forwards, has_feed_forwards


@dataclass(frozen=True)
class ClusCa(Method):
    """Between full steps forecast attention, and compute one token of every cluster of tokens.

    Attributes:
        interval: steps from one full step to the next; 1 skips nothing.
        clusters: groups of tokens, by k-means on what leaves the last block at full steps.
        spread: share of a computed token's value that the others of its cluster take over, in
            place of as much of their own; 0.007 as published for FLUX, 0 changes computed tokens
            only. Text tokens of their own take over nothing.
        order: of the forecast; the published one adds it to computed tokens as well.
        warmup: first steps, all full (per expert in Wan 2.2).
        last: also compute the final step in full.
        seed: of the draw of tokens, so that runs repeat.

    Only feed-forwards that treat every token alone are computed in part; other modules are
    forecast as in TaylorSeer. Keeps `order` + 1 outputs of every module per branch. A static
    schedule: samples of a batch are clustered apart but share the draw, so a sample does not
    depend on its batch; no step waits for the host.
    """

    interval: int = 5
    clusters: int = 16
    spread: float = 0.007
    order: int = 1
    warmup: int = 3
    last: bool = False
    seed: int = 0

    level: ClassVar[str] = "tokens"
    kinds: ClassVar[tuple[str, ...]] = ("transformer",)
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        check_fields(
            self,
            interval=(self.interval >= 1, "at least 1"),
            clusters=(self.clusters >= 1, "at least 1"),
            spread=(0 <= self.spread <= 1, "from 0 to 1"),
            order=(0 <= self.order <= 6, "from 0 to 6"),
            warmup=(self.warmup >= 1, "at least 1"),
            seed=(self.seed >= 0, "0 or more"),
        )

    @property
    def policy(self) -> Policy:
        return Interval(self.interval, self.warmup, self.last)

    def supports(self, family: Family) -> bool:
        return super().supports(family) and has_feed_forwards(family)

    def expect(self, site: Site, steps: int) -> str:
        return explain_schedule(
            self.policy,
            steps,
            f"on the others attention is forecast and feed-forwards run for {self.clusters} tokens "
            f"each; keeps {self.order + 1} outputs of every module",
        )

    def install(self, site: Site) -> None:
        cache = Cache(site, taylor, self.order + 1)
        ClusterTokens(site, cache, self.policy, self).install()


class ClusterTokens(Tokens):
    """Chooses one token of every cluster; clusters are found when the last block has run."""

    def __init__(self, site: Site, cache: Cache, policy: Policy, settings: ClusCa) -> None:
        # released code takes no difference before the last warm-up step
        super().__init__(site, cache, policy, "ClusCa", settings.warmup - 2)
        self.settings, self.order = settings, settings.order

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        skipped = super().attach(name, denoiser)
        last = {place.part: place for place in feed_forwards(self.site.family, denoiser).values()}
        for path, block, spec in self.site.family.flat_blocks(denoiser):
            here = [place for place in last.values() if place.path == f"{path}.{place.part}"]
            if here:
                handler = functools.partial(self.cluster, Streams(block, spec), here)
                self.site.patches.call(block, handler, f"{self.label} on {name}.{path}")
        return skipped

    def cluster(
        self,
        streams: Streams,
        here: list[Place],
        run: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Handle the last block with some feed-forward: group the tokens that leave it."""
        value = run(*args, **kwargs)
        state = self.cache.current
        assert state is not None
        for place in here if state.compute else ():
            count = state.extra[f"{place.path}:0"].shape[1]
            tokens = self._tokens(streams, value, count, place.text)
            count = min(self.settings.clusters, count)
            draw = self._generator(state, tokens.device)
            centroids = state.extra.get(f"{place.part}:centroids")
            labels, centroids = assign(tokens.detach().float(), count, centroids, draw)
            state.extra[f"{place.part}:labels"] = labels
            state.extra[f"{place.part}:centroids"] = centroids
        return value

    def _tokens(self, streams: Streams, value: Any, count: int, text: bool) -> Tensor:
        """What leaves the block for the tokens (B, `count`, D) of a feed-forward."""
        main = self.site.family.stream
        others = [name for name in streams.names if name != main]
        wanted = others if text else [main]
        found = torch.cat([streams.pick(value, name) for name in wanted], dim=1)
        if found.shape[1] < count:  # one feed-forward for text and picture, text first
            found = torch.cat([*(streams.pick(value, name) for name in others), found], dim=1)
        return found

    def _generator(self, state: State, device: torch.device) -> torch.Generator:
        if "generator" not in state.extra:
            seeded = torch.Generator(device).manual_seed(self.settings.seed)
            state.extra["generator"] = seeded
        return state.extra["generator"]

    def choose(self, state: State, place: Place, tokens: Tensor) -> Tensor | None:
        labels = state.extra[f"{place.part}:labels"]
        draw = self._generator(state, tokens.device)
        return one_of_each(labels, min(self.settings.clusters, tokens.shape[1]), draw)

    def merge(
        self, state: State, place: Place, kept: Tensor, chosen: Tensor, fresh: Tensor
    ) -> Tensor:
        kept = super().merge(state, place, kept, chosen, fresh)
        if self.settings.spread and not place.text:
            labels = state.extra[f"{place.part}:labels"]
            values = fresh.gather(1, labels[..., None].expand(-1, -1, fresh.shape[-1]))
            kept = kept.lerp_(values, self.settings.spread)
        return kept
