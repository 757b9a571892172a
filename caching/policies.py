"""Policies: when to compute. Settings only; what they need to know is passed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol


class Policy(Protocol):
    """Decides, step by step, whether the cached part runs."""

    def computes(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` is computed.

        Args:
            index: iterations since the denoiser was first called in this run, so that a second
                expert (Wan 2.2) gets a warm-up of its own.
            total: iterations of the run, counted from the same place.
        """
        ...


@dataclass(frozen=True)
class Interval:
    """Every `interval`-th step after `warmup` steps, as TaylorSeer counts (2503.06923).

    The last of the warm-up steps is the first of the regular ones. `last` also computes the final
    step, which the published schedule does not.
    """

    interval: int
    warmup: int = 1
    last: bool = False

    def computes(self, index: int, total: int) -> bool:
        start = max(self.warmup, 1) - 1
        if index <= start or (self.last and index == total - 1):
            return True
        return (index - start) % self.interval == 0


@dataclass(frozen=True)
class Power:
    """As many steps as `Interval`, denser early: int(x_i^power) for n = ceil(T / interval)
    evenly spaced x_i from 0 to T^(1/power), the last left out.

    The non-uniform schedule of DeepCache (2312.00858) for latent diffusion.
    """

    interval: int
    power: float

    def computes(self, index: int, total: int) -> bool:
        return index in _power_steps(total, self.interval, self.power)


@cache
def _power_steps(total: int, interval: int, power: float) -> frozenset[int]:
    count = math.ceil(total / interval)
    gap = total ** (1 / power) / count
    return frozenset(int((i * gap) ** power) for i in range(count))


@dataclass(frozen=True)
class Listed:
    """The steps named, and no others."""

    steps: Sequence[int]

    def computes(self, index: int, total: int) -> bool:
        return index in self.steps


@dataclass(frozen=True)
class Stretched:
    """Steps named for a run of `of` steps, at the same fractions of any other: s -> s * T // of."""

    steps: Sequence[int]
    of: int

    def computes(self, index: int, total: int) -> bool:
        return any(s * total // self.of == index for s in self.steps)


@dataclass(frozen=True)
class Bins:
    """Computed and cached stretches in turn, stretched from their own number of steps to the run's.

    The last step is always computed, as cache-dit's masks have it.
    """

    computed: Sequence[int]
    cached: Sequence[int]

    def computes(self, index: int, total: int) -> bool:
        if index in (0, total - 1):
            return True
        position = index * (sum(self.computed) + sum(self.cached)) // total
        for i, length in enumerate(self.computed):
            if position < length:
                return True
            position -= length
            pause = self.cached[i] if i < len(self.cached) else 0
            if position < pause:
                return False
            position -= pause
        return True


def begins_and_rises(steps: Sequence[int] | None) -> bool:
    """Whether listed steps, if any are, rise from 0 on."""
    return steps is None or (bool(steps) and steps[0] == 0 and list(steps) == sorted(set(steps)))


def schedule(policy: Policy, total: int) -> list[int]:
    """The steps that `policy` computes in a run of `total` steps."""
    return [i for i in range(total) if policy.computes(i, total)]


def explain_schedule(policy: Policy, total: int, kept: str) -> str:
    """The line a method with a static schedule shows before a run."""
    count = len(schedule(policy, total))
    return f"computes {count} of {total} steps ({count / total:.0%}); {kept}"
