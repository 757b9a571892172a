"""A plan as the floor has it: all its weights moved by gradient descent through the sampler.

Effort "gradient" of a calibration searches for other nodes first. Here the nodes stay, so that what
the descent gains over the closed form is told by itself, for a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from accel.caching.planning.gradient import refined
from accel.caching.planning.planner import Fitted
from accel.caching.planning.walk import Walker
from accel.plan import Plan
from benchmarks.shapes import Model, Sample


def descended(model: Model, plan: Plan, samples: Sequence[Sample]) -> Plan:
    """`plan`, its weights descended on one half of the samples as far as the other half gains.

    Weights stay as they are where nothing is gained. The pipeline must have the scheduler that the
    plan was made for.

    Args:
        plan: of carrier "output", made from these samples.
    """
    planned = plan.methods[0]
    halves = samples[::2], samples[1::2]
    start = Fitted(planned.nodes, planned.weights, np.zeros(len(samples)))

    def run(half: int) -> None:
        model.call(model.pipe, planned.steps, halves[half], "latent")

    with Walker(model.pipe, run, len(halves)) as walker:
        walker.record()
        found, gained = refined(walker, start, correct=planned.correct)
        spent = walker.evaluations / walker.response.steps
    # its limits were those of the weights as they were
    method = replace(planned, weights=found.weights, limits=())
    told = {"cost": plan.measured["cost"] + spent, **gained}
    kept = {k: plan.measured[k] for k in ("steps", "samples", "budget")}
    return replace(plan, methods=(method,), measured={**kept, **told})
