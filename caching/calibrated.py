"""Fits of TeaCache's polynomial and MagCache's ratios to recorded runs."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from accel.calibration import Recording
from accel.method import Site

from .adaptive import relative
from .indicators import INDICATORS, own_indicator
from .recording import Recorder, record
from .span import Entry
from .state import State

if TYPE_CHECKING:
    from .magcache import MagCache
    from .teacache import TeaCache

DEGREE = 4


@dataclass(frozen=True)
class TeaCacheRecording(Recording):
    """Relative changes of TeaCache's indicator and of the denoiser's output, step by step."""

    method: TeaCache
    seen: Changes = field(default_factory=lambda: Changes())

    def install(self, site: Site) -> None:
        self.seen.indicator = self.method.indicator or own_indicator(site.family)
        record(site, "TeaCache", self.seen)

    def fit(self) -> TeaCache:
        points = [(x.item(), y.item()) for x, y in self.seen.points]
        points = [point for point in points if np.isfinite(point).all()]
        if len(points) <= DEGREE:
            raise ValueError(
                f"{len(points)} changes are too few for a polynomial of degree {DEGREE}; record "
                f"more steps or samples"
            )
        x, y = np.array(points, dtype=np.float64).T
        coefficients = tuple(float(c) for c in np.polyfit(x, y, DEGREE))
        return dataclasses.replace(
            self.method, coefficients=coefficients, indicator=self.seen.indicator
        )


class Changes(Recorder):
    """(change of the indicator, change of the output) of every step but the first."""

    def __init__(self) -> None:
        self.indicator: Literal["modulated", "embedding"] = "modulated"
        self.points: list[tuple[Tensor, Tensor]] = []

    def entered(self, state: State, entry: Entry) -> None:
        self._change(state, "indicator", INDICATORS[self.indicator](entry))

    def returned(self, state: State, output: Tensor) -> None:
        change = self._change(state, "output", output)
        if change is not None:
            self.points.append((state.extra["indicator change"], change))

    def _change(self, state: State, name: str, value: Tensor) -> Tensor | None:
        old, state.extra[name] = state.extra.get(name), value.detach().clone()
        if old is None:
            return None
        state.extra[f"{name} change"] = relative(value, old, [state])
        return state.extra[f"{name} change"]


@dataclass(frozen=True)
class MagCacheRecording(Recording):
    """Magnitudes of what the blocks add, relative to the step before."""

    method: MagCache
    seen: Ratios = field(default_factory=lambda: Ratios())

    def install(self, site: Site) -> None:
        self.seen.site = site
        record(site, "MagCache", self.seen)

    def fit(self) -> MagCache:
        branches = {branch: averaged(steps) for branch, steps in self.seen.found.items()}
        if not branches:
            raise ValueError("nothing was recorded: the pipeline did not run its blocks")
        uncond = branches.pop("uncond", None)
        main = next(iter(branches.values()), uncond)
        return dataclasses.replace(self.method, ratios=main, uncond=uncond)


class Ratios(Recorder):
    """Mean over tokens of |R_s| / |R_{s-1}|, by branch and step."""

    def __init__(self) -> None:
        self.site: Site | None = None
        self.found: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))

    def added(self, state: State, residual: Tensor) -> None:
        assert self.site is not None
        step = self.site.clock.step
        magnitude = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32)
        old, state.extra["magnitude"] = state.extra.get("magnitude"), magnitude
        ratio = torch.ones(()) if old is None else (magnitude / old).mean()
        self.found[step.branch][step.index].append(ratio)


def averaged(steps: dict[int, list[Tensor]]) -> tuple[float, ...]:
    """Mean ratio of every step, in order; 1 where a step was not seen."""
    return tuple(
        round(torch.stack([r.cpu() for r in steps[i]]).mean().item(), 6) if i in steps else 1.0
        for i in range(max(steps) + 1)
    )
