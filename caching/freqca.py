"""FreqCa (2510.08669): low frequencies of the hidden states stay, high ones are forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from accel.method import Site
from accel.token_grid import token_grid

from .carriers import Hidden
from .forecasters import Weights, hermite
from .forecasting import Forecasting
from .frequency import split
from .state import Cache

LOW, GRID = "low", "grid"


class SplitHidden(Hidden):
    """The hidden states after the last block: what is low is reused, what is high forecast."""

    cutoff: float

    def install(self) -> None:
        super().install()
        for name, module in self.site.denoisers.items():
            self.cache.will_keep(name, (), self.outputs(module, []))  # what is low, once

    def decide(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().decide(name, args, kwargs)
        state = self.cache.current
        assert state is not None
        if GRID not in state.extra:
            state.extra[GRID] = token_grid(self.site.denoisers[name], args, kwargs)

    def keep(self, path: str, value: torch.Tensor, own: bool = False) -> None:
        state = self.cache.current
        assert state is not None
        state.extra[LOW], high = split(value.detach(), state.extra[GRID], self.cutoff)
        super().keep(path, high, own=True)

    def forecast(self, path: str) -> torch.Tensor:
        state = self.cache.current
        assert state is not None
        return super().forecast(path) + state.extra[LOW]


@dataclass(frozen=True)
class FreqCa(Forecasting):
    """Compute every `interval`-th step; on the others forecast what is fine, reuse what is coarse.

    Attributes:
        interval: steps from one computed step to the next; 1 skips nothing.
        warmup: first steps, all computed (per expert in Wan 2.2).
        order: of the forecast of high frequencies, on a Hermite basis as in `HiCache`.
        sigma: scale of that basis; at 0.71 a line is continued as it is.
        cutoff: share of the highest spatial frequency up to which frequencies are low.
        last: also compute the final step; the published schedule does not.
        settle: take the first difference over a whole interval; as published it is taken between
            the last two warm-up steps.

    Acts on the hidden states after the last block: embedders and output layers run on every step.
    Frequencies are those of a cosine transform over a square picture, else of a Fourier transform
    along all tokens. Keeps `order` + 2 hidden states per branch. A static schedule: samples of a
    batch do not influence one another, and no step waits for the host.
    """

    interval: int = 6
    warmup: int = 3
    order: int = 2
    sigma: float = 0.71
    cutoff: float = 0.1
    last: bool = False
    settle: bool = False

    kinds: ClassVar[tuple[str, ...]] = ("transformer",)

    def __post_init__(self) -> None:
        self.check(
            order=(0 <= self.order <= 6, "from 0 to 6"),
            sigma=(0 < self.sigma <= 1, "above 0 and at most 1"),
            cutoff=(0 <= self.cutoff <= 1, "from 0 to 1"),
        )

    @property
    def carrier(self) -> str:  # type: ignore[override]
        return "hidden"

    @property
    def kept(self) -> int:
        return self.order + 2

    def weights(self, site: Site) -> Weights:
        return hermite(self.sigma)

    @property
    def since(self) -> int:
        return self.warmup - (1 if self.settle else 2)

    def install(self, site: Site) -> None:
        cache = Cache(site, self.weights(site), self.order + 1)
        carrier = SplitHidden(site, cache, self.policy, "FreqCa", self.since)
        carrier.cutoff = self.cutoff
        carrier.install()
