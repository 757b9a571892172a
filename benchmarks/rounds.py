"""Several ways of doing the same thing against one baseline, taking turns in one process.

Like `paired`, but a round has one turn of each in shuffled order, so that the baseline is run once
for all of them. Every ratio is to the baseline of the same round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

from benchmarks.paired import CHECK_EVERY, Timings, uncollected


def rounds(
    baseline: Callable[[], float],
    others: Mapping[str, Callable[[], float]],
    *,
    least: int = 30,
    most: int | None = None,
    half_width: float | None = None,
    limit_s: float = float("inf"),
    warmup: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timings]:
    """Timings of each of `others` against `baseline`; each call does its work, returns seconds.

    Every one takes `least` turns; with `half_width`, it goes on until the 95 % half-width of its
    median ratio is at most that, up to `most` turns. No round is begun later than `limit_s` seconds
    after the warm-up, but one always runs.
    """
    if least < 1 or warmup < 0:
        raise ValueError(f"least must be at least 1 and warmup at least 0, got {least}, {warmup}")
    most = (10 * least if half_width is not None else least) if most is None else most
    for _ in range(warmup):
        for call in (baseline, *others.values()):
            call()
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in others}
    open_, done, shuffle = list(others), 0, random.Random(seed).shuffle
    with uncollected():
        start = clock()
        while open_ and done < most and (not done or clock() - start < limit_s):
            turns: list[str | None] = [None, *open_]
            shuffle(turns)
            took = {name: baseline() if name is None else others[name]() for name in turns}
            for name in open_:
                seconds[name][0].append(took[None])
                seconds[name][1].append(took[name])
            done += 1
            if half_width is not None and done >= least and (done - least) % CHECK_EVERY == 0:
                open_ = [n for n in open_ if timings(seconds[n]).interval().half_width > half_width]
    return {name: timings(taken) for name, taken in seconds.items()}


def timings(taken: tuple[list[float], list[float]]) -> Timings:
    """Of the seconds of the baseline and of the other, turn by turn."""
    return Timings(tuple(taken[0]), tuple(taken[1]))
