"""Two ways of doing the same thing, timed alternately in one process.

Turn about, and in the other order every other pair, so that what drifts (clocks, caches, other
load) falls on both alike; the ratio is taken pair by pair.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from accel.metrics import Interval, ratio_interval

CHECK_EVERY = 5  # pairs between looks at the interval


@dataclass(frozen=True)
class Timings:
    """Seconds of each pair, in order; every ratio is second / first."""

    first_s: tuple[float, ...]
    second_s: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(b / a for a, b in zip(self.first_s, self.second_s, strict=True))

    def interval(self) -> Interval:
        """Median ratio with its 95 % bootstrap interval over pairs."""
        return ratio_interval(list(zip(self.second_s, self.first_s, strict=True)))

    def as_dict(self) -> dict[str, Any]:
        """What a benchmark writes down, ready for JSON."""
        found = self.interval()
        return {
            "pairs": len(self.first_s),
            "ratio": found.estimate,
            "ratio_low": found.low,
            "ratio_high": found.high,
            "half_width": found.half_width,
            "first_s": float(np.median(self.first_s)),
            "second_s": float(np.median(self.second_s)),
            "ratios": list(self.ratios),
        }


def paired(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int = 30,
    half_width: float | None = None,
    most_pairs: int | None = None,
    limit_s: float = float("inf"),
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times `first` and `second` alternately.

    Runs `pairs` pairs; with `half_width`, then goes on until the 95 % half-width of the median
    ratio is at most that, up to `most_pairs` (ten times `pairs` by default). No pair is begun later
    than `limit_s` seconds after the warm-up, but one always runs. `warmup` calls of each are made
    before and not counted. Work queued on a GPU is waited for.
    """
    if pairs < 1 or warmup < 0:
        raise ValueError(f"pairs must be at least 1 and warmup at least 0, got {pairs}, {warmup}")
    if half_width is None:
        most_pairs = pairs
    elif most_pairs is None:
        most_pairs = 10 * pairs
    for _ in range(warmup):
        first()
        second()
    seconds: tuple[list[float], list[float]] = ([], [])
    with uncollected():
        start = clock()
        while len(seconds[0]) < most_pairs:
            done = len(seconds[0])
            if done and clock() - start >= limit_s:
                break
            if done >= pairs and half_width is not None and (done - pairs) % CHECK_EVERY == 0:
                found = ratio_interval(list(zip(seconds[1], seconds[0], strict=True)))
                if found.half_width <= half_width:
                    break
            for which in (0, 1) if done % 2 == 0 else (1, 0):
                seconds[which].append(_timed((first, second)[which], clock))
    return Timings(*(tuple(s) for s in seconds))


@contextmanager
def uncollected() -> Iterator[None]:
    """Garbage is collected before, which takes seconds in a long process, and not within."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    _wait()
    start = clock()
    call()
    _wait()
    return clock() - start


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
