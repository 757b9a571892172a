"""Which tokens a partial step computes: scores, tokens left out too often, time."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

Metric = Literal["std", "l2", "error"]
Starvation = Literal["fair", "released", "none"]


def scores(patches: Tensor, metric: Metric) -> Tensor:
    """How much goes on in every token: (N, S) of a guided prediction (N, S, pixels, channels).

    The standard deviation over channels, or their norm, of every pixel; the mean over the pixels
    of a token. RAS multiplies by the step's change of sigma, which orders nothing. "error" is "std"
    as long as nothing was forecast (`Misses`).
    """
    values = patches.float()
    pixels = values.norm(dim=-1) if metric == "l2" else values.std(dim=-1)
    return pixels.mean(dim=-1)


def over_time(score: Tensor, grid: tuple[int, int, int], weight: float) -> Tensor:
    """`score` (N, S) with a share `weight` of its mean over the frame, the one before and after.

    What moves keeps its place on the list while it passes from token to token.
    """
    if not weight or grid[0] == 1:
        return score
    frames = score.unflatten(1, (1, *grid))
    near = avg_pool3d(frames, (3, 1, 1), stride=1, padding=(1, 0, 0), count_include_pad=False)
    return torch.lerp(frames, near, weight).flatten(1)


class Misses:
    """The error to be expected of every token if it is left out of the next step.

    A forecast through `order + 1` points errs by a power of the steps since the last of them: what
    it missed when the token was computed, and how old it was then, foretell what it will miss.
    """

    def __init__(self, order: int) -> None:
        self._power = order + 1
        self._rate: Tensor | None = None
        self._age: Tensor | None = None

    def note(self, missed: Tensor, active: Tensor | None) -> None:
        """Note a step.

        Args:
            missed: (N, S) by how much what a token was computed to differs from its forecast.
            active: indices (N or 1, k) of the tokens computed; None for all.
        """
        if self._rate is None or active is None:
            age = 1.0 if self._age is None else self._age
            self._rate, self._age = missed / age**self._power, torch.ones_like(missed)
            return
        assert self._age is not None
        active = active.expand(len(missed), -1)
        rate = missed / self._age**self._power
        self._rate = self._rate.scatter(1, active, rate.gather(1, active))
        self._age = (self._age + 1).scatter(1, active, 1.0)

    def expected(self) -> Tensor | None:
        """Scores (N, S) for the next step; None before anything was forecast."""
        if self._rate is None or self._age is None:
            return None
        return self._rate * self._age**self._power


class Selection:
    """Chooses tokens, or tiles of them, step by step, and remembers how often each was left out.

    Sorted by score, the lowest `1 - high` and the highest `high` of the tokens to be left out are;
    the rest is computed (RAS, 2502.10389, computes the lowest: high = 1).

    Args:
        high: share of the tokens left out that is taken from the highest scores.
        strength: k of exp(k * times left out), by which scores change.
        starvation: "fair" moves a token away from the end it was left out at each time it is;
            "released" multiplies by exp(+k drops) at either end as the released code does, which
            at high = 1 leaves out for good what was left out once; "none" changes no scores.
    """

    def __init__(self, high: float, strength: float, starvation: Starvation) -> None:
        self.high, self.strength, self.starvation = high, strength, starvation
        self.drops: Tensor | None = None
        self.pull: Tensor | None = None

    def choose(self, score: Tensor, left_out: int) -> Tensor:
        """Indices (N, S - left_out), ascending, of the tokens to compute.

        Args:
            score: (N, S), not negative.
        """
        if self.drops is None or self.drops.shape != score.shape:
            self.drops, self.pull = torch.zeros_like(score), torch.zeros_like(score)
        assert self.pull is not None
        if self.starvation != "none":
            score = score * torch.exp(self.strength * self.pull)
        highest = round(left_out * self.high)
        lowest = left_out - highest
        order = score.argsort(dim=1, stable=True)
        stop = score.shape[1] - highest
        bottom, active, top = order[:, :lowest], order[:, lowest:stop], order[:, stop:]
        one = torch.ones_like(score)
        self.drops.scatter_add_(1, bottom, one).scatter_add_(1, top, one)
        self.pull.scatter_add_(1, bottom, one)
        self.pull.scatter_add_(1, top, one if self.starvation == "released" else -one)
        return active.sort(dim=1).values
