"""Noise levels fitted to a model: the best choice among those of recorded full runs, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from accel.calibration import Recording
from accel.method import Method, Site
from accel.plan import as_method
from accel.step import Run

from .adams_bashforth import AdamsBashforth
from .levels import velocity_of
from .multistep import integral


@dataclass(frozen=True)
class LevelRecording(Recording):
    """Keeps, of full runs, the inner products of all velocities, and fits levels to their sum.

    Attributes:
        steps: levels to fit.
        solver, options: of the `Sampler` that is made.
    """

    steps: int = 10
    solver: str = "AdamsBashforth"
    options: tuple[tuple[str, bool | int | float | str], ...] = ()
    levels: list[float] = field(default_factory=list)
    grams: list[np.ndarray] = field(default_factory=list)

    level: ClassVar[str] = "step"

    def install(self, site: Site) -> None:
        seen: list[Tensor] = []
        config = site.pipe.scheduler.config
        converter = AdamsBashforth.from_config(config, invert_sigmas=False)  # as run.sigmas

        def begin(run: Run) -> None:
            seen.clear()
            found = [converter._level(float(s if s is not None else "nan")) for s in run.sigmas]
            self.levels[:] = [level.g for level in found]

        def step(call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any):
            run = site.clock.run
            if run is not None:
                level = converter._level(float(run.sigmas[run.index] or 0))
                kind = converter.config.prediction_type
                velocity = velocity_of(kind, output.float(), sample.float(), level)
                seen.append(velocity.flatten().cpu())
            return call(output, t, sample, **rest)

        def end(run: Run) -> None:
            if len(seen) == run.total and not run.failed:
                stacked = torch.stack(seen).double()
                self.grams.append((stacked @ stacked.T / stacked.shape[1]).numpy())
            seen.clear()

        site.clock.on_begin.append(begin)
        site.clock.on_end.append(end)
        site.clock.step_handlers.append(step)

    def fit(self) -> Method:
        if not self.grams:
            raise ValueError("no full run was recorded")
        if np.isnan(self.levels).any():
            raise ValueError("the scheduler does not tell its noise levels; none can be fitted")
        if len(self.levels) < 2 * self.steps:
            raise ValueError(
                f"runs of {len(self.levels)} steps are too short to place {self.steps} levels; "
                f"record at least {2 * self.steps}"
            )
        nodes = best_nodes(np.array(self.levels), sum(self.grams) / len(self.grams), self.steps)
        levels = tuple(round(self.levels[i], 6) for i in nodes)
        fields = {"options": self.options, "grid": "fitted", "levels": levels, "steps": self.steps}
        return as_method("Sampler", solver=self.solver, **fields)


def best_nodes(levels: np.ndarray, gram: np.ndarray, count: int) -> list[int]:
    """The `count` of all T levels, the first among them, that add up to the least error.

    The error of a step is what a corrected second-order step (Adams-Moulton through the end, the
    start and the node before) is off by from the integral over all levels, along the recorded runs;
    and a share, the length of the step, of what the prediction is off by, as that moves the
    velocity. The last step is predicted only. Norms of steps are summed, and the minimum is found
    by dynamic programming over the last two nodes.

    Args:
        levels: (T,) falling.
        gram: (T, T) inner products of the velocities there.
    """
    total = len(levels)
    ends = np.append(levels, 0.0)
    pieces = np.array([_fine(levels, ends, i) for i in range(total)])
    reach = np.concatenate([np.zeros((1, total)), pieces.cumsum(0)])

    def errors(before: list[int], node: int) -> np.ndarray:
        """(T - node,) of steps from `node` to every later level, and to 0."""
        later = range(node + 1, total)
        predicted = [_off(ends, reach, [node, *before], node, k) for k in (*later, total)]
        corrected = [_off(ends, reach, [k, node, *before], node, k) for k in later]
        moved = _norms(gram, predicted)
        if corrected:
            lengths = ends[node] - ends[node + 1 : total]
            moved[:-1] = _norms(gram, corrected) + lengths * moved[:-1]
        return moved

    best = np.full((total, total + 1), np.inf)  # (last but one, last) -> least error so far
    best[0, 1:] = errors([], 0)
    costs = np.full((total, total, total + 1), np.inf)
    for i in range(total):
        for j in range(i + 1, total):
            costs[i, j, j + 1 :] = errors([i], j)
    back = []
    for _ in range(count - 1):
        reached = best[:, :total, None] + costs
        back.append(reached.argmin(0))
        best = reached.min(0)
    path = [total, int(best[:, total].argmin())]
    for choice in reversed(back):
        path.append(int(choice[path[-1], path[-2]]))
    return path[:0:-1]


def _fine(levels: np.ndarray, ends: np.ndarray, i: int) -> np.ndarray:
    """(T,) weights of the integral from level i to the next, by the line through the two."""
    weights = np.zeros(len(levels))
    pair = [i, i + 1] if i + 1 < len(levels) else [i, i - 1]
    weights[pair] = integral(levels[pair].tolist(), ends[i], ends[i + 1])
    return weights


def _off(ends: np.ndarray, reach: np.ndarray, used: list[int], node: int, end: int) -> np.ndarray:
    """(T,) weights of the step's rule less those of the integral from `node` to `end`."""
    weights = reach[node] - reach[end]
    weights[used] += integral(ends[used].tolist(), ends[node], ends[end])
    return weights


def _norms(gram: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Of the sums of velocities with these weights."""
    rows = np.array(weights)
    return np.sqrt(((rows @ gram) * rows).sum(-1).clip(0))
