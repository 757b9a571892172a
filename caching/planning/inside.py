"""Plans of what lies inside the model: forecasts by weights fitted for every skipped step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from accel.caching.carriers import Modules
from accel.caching.forecasters import newton
from accel.caching.judge import ScheduleJudge, install_span
from accel.caching.state import Cache
from accel.method import Site
from accel.step import Run

from .fit import RIDGES
from .transfer import moved

HISTORY = 3
Weights = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Forecast:
    """Forecasts by weights of a plan: a row for every step, newest kept first, summing to 1."""

    weights: Weights

    def __call__(self, anchors: Sequence[float], index: float) -> list[float]:
        row = self.weights[int(index)] if int(index) < len(self.weights) else ()
        if len(row) == min(len(anchors), HISTORY) and row:
            return [*row, *[0.0] * (len(anchors) - len(row))]
        return [*newton(list(anchors)[:2], index), *[0.0] * (len(anchors) - 2)]


class Fields(Protocol):
    """What of a plan is needed to run it."""

    @property
    def carrier(self) -> str: ...
    @property
    def nodes(self) -> tuple[int, ...]: ...
    @property
    def steps(self) -> int: ...
    @property
    def weights(self) -> Weights: ...
    @property
    def sigmas(self) -> tuple[float, ...]: ...


class Inside:
    """A plan of a carrier inside the model, at work in one pipeline."""

    def __init__(self, plan: Fields, site: Site) -> None:
        self.plan, self.site, self.carrier = plan, site, plan.carrier
        self.nodes, self.forecast = plan.nodes, Forecast(plan.weights)

    def install(self) -> None:
        site = self.site
        if len(site.denoisers) > 1:
            raise ValueError(
                f"a plan of carrier {self.carrier!r} is for one denoiser, this pipeline has "
                f"{len(site.denoisers)}; use one of carrier 'output'"
            )
        site.clock.on_begin.append(self._begin)
        if self.carrier == "residual":
            judge = ScheduleJudge(site, lambda branch: self, whole=True)
            install_span(site, "Planned", judge, self._weigh, HISTORY, first=1)
        else:
            Modules(site, Cache(site, self._weigh, HISTORY), self, "Planned").install()

    def computes(self, index: int, total: int) -> bool:
        """The policy: nodes of the run going on."""
        return index in self.nodes

    def _weigh(self, anchors: Sequence[float], index: float) -> list[float]:
        return self.forecast(anchors, index)

    def _begin(self, run: Run) -> None:
        plan = self.plan
        self.nodes, _ = moved(plan.nodes, (), plan.sigmas, run.sigmas, plan.steps)
        as_made = self.nodes == plan.nodes and run.total == plan.steps
        self.forecast = Forecast(plan.weights if as_made else ())


def fitted_weights(grams: np.ndarray, nodes: Sequence[int], rows: Sequence[int]) -> Weights:
    """Weights of the newest kept values for every step, from inner products of true ones.

    For each skipped step those that come nearest to the value there, summing to 1, by ridge
    regression from the line through the last two; the ridge is that which is best on runs left out
    one at a time.

    Args:
        grams: (M, N, N) of every run.
        rows: runs to fit on.
    """
    steps = grams.shape[1]
    found: list[tuple[float, ...]] = []
    for index in range(steps):
        past = [node for node in nodes if node <= index][::-1][:HISTORY]
        if index in nodes:
            found.append(())
            continue
        prior = np.array([*newton(past[:2], index), *[0.0] * (len(past) - 2)])
        found.append(tuple(float(w) for w in _nearest(grams[list(rows)], index, past, prior)))
    return tuple(found)


def _nearest(grams: np.ndarray, index: int, past: Sequence[int], prior: np.ndarray) -> np.ndarray:
    if len(past) < 2:
        return prior
    # what the prior misses, and how each older value differs from the newest
    missing = np.zeros(grams.shape[1])
    missing[index] = 1
    missing[list(past)] -= prior
    apart = np.zeros((len(past) - 1, grams.shape[1]))
    for row, older in zip(apart, past[1:], strict=True):
        row[older], row[past[0]] = 1, -1
    own = apart @ grams @ apart.T
    side = grams @ missing @ apart.T
    gram, pull = own.sum(0), side.sum(0)

    def solved(gram: np.ndarray, pull: np.ndarray, ridge: float) -> np.ndarray:
        size = gram.diagonal().mean()
        if size == 0 or np.isinf(ridge):
            return np.zeros(len(pull))
        return np.linalg.solve(gram + ridge * size * np.eye(len(pull)), pull)

    def left_out(ridge: float) -> float:
        total = 0.0
        for one, its in zip(own, side, strict=True):
            w = solved(gram - one, pull - its, ridge)
            total += float(w @ one @ w - 2 * w @ its)
        return total

    best = min(RIDGES[2:], key=left_out) if len(own) > 1 else 1e-2
    change = solved(gram, pull, best)
    return prior + np.array([-change.sum(), *change])
