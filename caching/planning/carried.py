"""Plans of carriers inside the model: as many nodes as the budget pays for, fitted and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from accel.method import Method, Site

from .inside import Inside, Weights, fitted_weights
from .schedule import GAP, best_schedules, segment_errors
from .walk import Walker

TOLERANCE = 1.02
"""Most that a plan may compute, in budgets."""


@dataclass(frozen=True)
class Running(Method):
    """A plan that is being measured."""

    carrier: str
    nodes: tuple[int, ...]
    steps: int
    weights: Weights
    sigmas: tuple[float, ...] = ()
    level: ClassVar[str] = "step"

    def expect(self, site: Site, steps: int) -> str:
        return "is measured"

    def install(self, site: Site) -> None:
        Inside(self, site).install()


@dataclass(frozen=True)
class Carried:
    """A plan of a carrier inside the model, and how near it came.

    Attributes:
        share: of the work of a full run that it computes.
        errors: (M,) root mean square distance of every sample's last state from the true one, with
            weights fitted on the other runs.
    """

    carrier: str
    nodes: tuple[int, ...]
    weights: Weights
    share: float
    errors: np.ndarray

    def decibels(self, peak: float = 2.0) -> float:
        """Mean PSNR in latent space."""
        return float(np.mean(20 * np.log10(peak / np.maximum(self.errors, 1e-9))))

    def fields(self, sigmas: tuple[float, ...]) -> dict[str, Any]:
        """Of the method."""
        named = {"carrier": self.carrier, "nodes": self.nodes, "weights": self.weights}
        return {**named, "steps": len(self.weights), "sigmas": sigmas}


def carried(walker: Walker, carrier: str, budget: int) -> Carried | None:
    """A plan of `carrier` with the work of `budget` steps; None where that is too little.

    What a skipped step costs is measured on a run; with it the number of nodes is set. The schedule
    is the one predicted best from inner products of what is kept.
    """
    grams, steps = walker.inside[carrier], walker.response.steps
    everything = list(range(len(grams)))
    error = segment_errors(grams.sum(0), walker.response.outputs[-1])

    def planned(count: int, rows: list[int]) -> Running:
        nodes = best_schedules(error, steps, count)[0].nodes
        return Running(carrier, nodes, steps, fitted_weights(grams, nodes, rows))

    trial = min(max(budget, -(-steps // GAP)), steps - 1)
    _, share = walker.whole(planned(trial, everything), 0)
    skipping = max(share * steps - trial, 0.0) / (steps - trial)
    count = min(int((TOLERANCE * budget - skipping * steps) / (1 - skipping)), steps)
    if count * GAP < steps or count < 2:
        return None
    errors = []
    for chunk in everything:
        rows = [row for row in everything if row != chunk] or everything
        state, share = walker.whole(planned(count, rows), chunk)
        true = walker.state(steps)[walker.rows([chunk])]
        errors.append((state - true).flatten(1).double().square().mean(1).sqrt().numpy())
    final = planned(count, everything)
    return Carried(carrier, final.nodes, final.weights, share, np.concatenate(errors))
