"""The token carrier: attention is stood in for, feed-forwards run for a few tokens only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.family import Blocks, Family
from accel.memory import Kept

from .carriers import Modules
from .state import State

FEED_FORWARDS = ("FeedForward", "LuminaFeedForward")
"""Classes that treat every token alone; Sana's, say, convolves them."""

PARTS = ("ff", "ffn", "feed_forward", "img_mlp", "ff_context", "txt_mlp")
TEXT_PARTS = ("ff_context", "txt_mlp")


@dataclass(frozen=True)
class Place:
    """A feed-forward in a denoiser.

    Attributes:
        path: where it is.
        part: its name in the block.
        depth: how far its block lies among those that have one, from 0 to 1.
    """

    path: str
    part: str
    depth: float

    @property
    def text(self) -> bool:
        """Whether its tokens are the text's alone."""
        return self.part in TEXT_PARTS


def has_feed_forwards(family: Family) -> bool:
    """Whether a family names feed-forwards at all."""
    return any(part in PARTS for blocks in family.blocks for part in blocks.modules)


def feed_forwards(family: Family, denoiser: torch.nn.Module) -> dict[str, Place]:
    """The feed-forwards of `denoiser` that treat every token alone, by path."""
    found = [
        [(f"{path}.{part}", part) for part in spec.modules if _token_wise(block, part)]
        for path, block, spec in family.flat_blocks(denoiser)
    ]
    layers = [parts for parts in found if parts]
    deepest = max(len(layers) - 1, 1)
    return {
        path: Place(path, part, i / deepest)
        for i, parts in enumerate(layers)
        for path, part in parts
    }


def _token_wise(block: torch.nn.Module, part: str) -> bool:
    return part in PARTS and type(block.get_submodule(part)).__name__ in FEED_FORWARDS


class Tokens(Modules):
    """On a skipped step, computes chosen tokens of every feed-forward and keeps the others.

    The kept output is a list of backward differences as in TaylorSeer, of which computed tokens
    replace the first; the forecast at offset x is sum_i D_i x^i / i!.
    """

    order = 0

    def choose(self, state: State, place: Place, tokens: Tensor) -> Tensor | None:
        """Indices (B, k) of the tokens (B, S, D) to compute; None for all of them."""
        raise AssertionError("says which tokens are computed")

    def merge(
        self, state: State, place: Place, kept: Tensor, chosen: Tensor, fresh: Tensor
    ) -> Tensor:
        """The kept output (B, S, D) with `fresh` (B, k, D) at `chosen`; may write into `kept`."""
        return kept.scatter_(1, _along(chosen, fresh), fresh)

    def prepare(self, name: str, place: Place, block: torch.nn.Module, spec: Blocks) -> None:
        """Wrap what choosing needs to see."""

    def install(self) -> None:
        super().install()
        found: dict[str, dict[str, list[str]]] = {}
        for name, module in self.site.denoisers.items():
            paths = list(feed_forwards(self.site.family, module))
            self.cache.will_keep(name, (), [Kept(path, copies=self.order + 1) for path in paths])
            for path in paths:
                found.setdefault(path, {})[name] = [path]
        for path, modules in found.items():
            self.site.report.skip_set(self.method, self.named(path), modules)

    def named(self, path: str) -> str:
        """Name of the skip set of one feed-forward."""
        return f"{self.label}:{path}"

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        places = feed_forwards(self.site.family, denoiser)
        if not places:
            raise ValueError(
                f"{self.method} computes feed-forwards token by token, and {name} has none that "
                f"treats every token alone ({' or '.join(FEED_FORWARDS)})"
            )
        self.gate(name, denoiser)
        skipped = []
        for path, block, spec in self.site.family.flat_blocks(denoiser):
            for part in (*spec.modules, *spec.idle):
                full = f"{path}.{part}"
                handler = functools.partial(self.stand_in, full)
                if full in places:
                    handler = functools.partial(self.feed_forward, places[full])
                    self.prepare(name, places[full], block, spec)
                elif part in spec.idle:
                    handler = functools.partial(self.idle, full)
                if full not in places:
                    skipped.append(full)
                self.site.patches.call(
                    block.get_submodule(part), handler, f"{self.label} on {name}.{full}"
                )
        return skipped

    def feed_forward(self, place: Place, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Handle a feed-forward: all tokens on a computed step, else the chosen ones."""
        state, step = self.cache.current, self.site.clock.step
        assert state is not None
        if self.computing:
            value = run(*args, **kwargs)
            self.renew(state, place, step.index, value)
            return value
        tokens = args[0] if args else kwargs["hidden_states"]
        kept = state.extra[f"{place.path}:0"]
        if kept.shape[:2] != tokens.shape[:2]:
            raise RuntimeError(
                f"{place.path} was called with {tuple(tokens.shape)} tokens after "
                f"{tuple(kept.shape)}; {self.method} cannot follow forward chunking, call "
                f"disable_forward_chunking()"
            )
        chosen = self.choose(state, place, tokens)
        count = tokens.shape[1] if chosen is None else chosen.shape[1]
        if chosen is None:
            kept = run(tokens).detach().clone()
        elif count:
            fresh = run(tokens.gather(1, _along(chosen, tokens)))
            kept = self.merge(state, place, kept, chosen, fresh)
        state.extra[f"{place.path}:0"] = kept
        call = self.site.clock.call
        assert call is not None
        call.leave_out(self.named(place.path), call.action, 1 - count / tokens.shape[1])
        return self._expanded(state, place, step.index)

    def renew(self, state: State, place: Place, index: int, value: Tensor) -> None:
        """Keep what a computed step gave, and its differences to what was kept."""
        path, extra = place.path, state.extra
        new = [value.detach().clone()]
        for i in range(self.order):
            old = extra.get(f"{path}:{i}")
            if old is None or index - state.first <= self.since:
                break
            gap = index - extra[f"{path}:at"]
            new.append(((new[i].float() - old.float()) / gap).to(value.dtype))
        for i in range(self.order + 1):
            extra.pop(f"{path}:{i}", None)
        extra |= {f"{path}:{i}": factor for i, factor in enumerate(new)}
        extra[f"{path}:at"] = index

    def _expanded(self, state: State, place: Place, index: int) -> Tensor:
        path, extra = place.path, state.extra
        total, term, ahead = extra[f"{path}:0"].clone(), 1.0, index - extra[f"{path}:at"]
        for i in range(1, self.order + 1):
            term *= ahead / i
            if f"{path}:{i}" in extra:
                total.add_(extra[f"{path}:{i}"], alpha=term)
        return total


def _along(index: Tensor, values: Tensor) -> Tensor:
    """Token indices (B, k) as indices (B, k, D) for gathering and scattering `values`."""
    return index[..., None].expand(-1, -1, values.shape[-1])
