"""From calibration runs of a pipeline to the fields of a plan, and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .carried import Carried, carried
from .gradient import Loss, latent, refined
from .planner import Fitted, predictions
from .rule import extrapolated
from .schedule import GAP, parts
from .search import CEILING, Search, search
from .surprise import MARGIN
from .walk import Walker

FLOOR = 1e-3
"""Least limit of the guard: a model whose outputs hardly change differs by rounding alone."""


@dataclass(frozen=True)
class Task:
    """What a calibration is to find.

    Attributes:
        budget: computed steps.
        effort: "normal", "high" or "gradient".
        loss: for "gradient", what is made small; the latent one if None.
        correct: whether a computed step puts right what the forecast before it was off by.
        carrier: "output", which is compared with others beyond effort "normal"; or the one to plan.
        progress: called with the share of the work that is done.
    """

    budget: int
    effort: str = "normal"
    loss: Loss | None = None
    correct: bool = True
    carrier: str = "output"
    progress: Callable[[float], None] = lambda share: None


def calibrated(
    pipe: Any, run: Callable[[int], Any], samples: int, task: Task
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a plan for `pipe`, and what was measured on the way.

    Raises:
        ValueError: a carrier that this model lacks, or that the budget is too small for.
    """
    done = 0
    share = 0.2 if task.effort == "gradient" else 1.0

    def recorded() -> None:
        nonlocal done
        done += 1
        task.progress(share * done / samples / CEILING[task.effort])

    within = task.carrier != "output"
    with Walker(pipe, run, samples) as walker:
        walker.record(recorded, inside=within or task.effort != "normal")
        names = [task.carrier] if within else list(walker.inside)
        if within and task.carrier not in walker.inside:
            raise ValueError(
                f"this model has no carrier {task.carrier!r}; it has "
                f"{', '.join(['output', *walker.inside])}"
            )
        others = [one for name in names if (one := carried(walker, name, task.budget)) is not None]
        if within and not others:
            raise ValueError(
                f"skipped steps of carrier {task.carrier!r} cost too much for a budget of "
                f"{task.budget} of {walker.response.steps} steps, of which one in {GAP} must be "
                "computed; take more, or carrier 'output'"
            )
        if within:
            fields, measured = _inside(walker, others[0])
        else:
            fields, measured = _chosen(walker, task, others, share)
        measured |= {"budget": task.budget, "cost": walker.evaluations / walker.response.steps}
    task.progress(1.0)
    return fields, measured


def _chosen(
    walker: Walker, task: Task, others: list[Carried], share: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nearest of what is searched for, and of plans inside the model."""
    told = search(
        walker,
        task.budget,
        task.effort,
        progress=lambda p: task.progress(share * p),
        correct=task.correct,
    )
    assert told.best is not None
    found, compared = told.best, _compared(told, others)
    if task.effort == "gradient":
        found, gained = refined(
            walker,
            found,
            task.loss or latent,
            progress=lambda p: task.progress(share + (1 - share) * p),
            correct=task.correct,
        )
        compared |= gained | {"gradient_loss": "latent" if task.loss is None else "given"}
    guidance: tuple[int, ...] = ()
    if told.split is not None and told.split[0].decibels() > found.decibels():
        found, guidance = told.split
    best = max(others, key=Carried.decibels, default=None)
    if best is not None and best.decibels() > found.decibels():
        fields, measured = _inside(walker, best)
        return fields, measured | compared | {"tried": len(told.tried)}
    whole = len(found.nodes) == walker.response.steps
    fields = {
        "nodes": found.nodes,
        "steps": walker.response.steps,
        "weights": () if whole else found.weights,
        "correct": task.correct,
        "sigmas": _levels(walker),
        "guidance": guidance,
        "limits": tuple(
            max(float(MARGIN * row.max()), FLOOR if j else 0.0)
            for j, row in enumerate(found.surprises)
        ),
    }
    if not guidance and 1 < len(found.nodes) < walker.response.steps:
        compared["foretold_db"] = told.foretold.decibels(found.nodes)
    return fields, _measured(walker, found, task.correct) | compared | {"tried": len(told.tried)}


def _compared(told: Search, others: list[Carried]) -> dict[str, Any]:
    """Decibels of the ways of planning that were tried, where there is more than one."""
    assert told.best is not None
    found: dict[str, Any] = {}
    if told.kinds is not None:
        found["last_alone_db"], found["along_db"] = told.kinds
    if told.split is not None:
        found["guidance_db"] = told.split[0].decibels()
    found |= {f"{other.carrier}_db": other.decibels() for other in others}
    if told.split is not None or others:
        found["output_db"] = told.best.decibels()
    return found


def _inside(walker: Walker, best: Carried) -> tuple[dict[str, Any], dict[str, Any]]:
    measured = {
        "steps": walker.response.steps,
        "samples": len(walker.first),
        "held_out": len(best.errors) if walker.chunks > 1 else 0,
        "held_out_db": best.decibels(),
    }
    return best.fields(_levels(walker)), measured


def _levels(walker: Walker) -> tuple[float, ...]:
    levels = [s for s in walker.sigmas if s is not None]
    return tuple(levels) if len(levels) == walker.response.steps else ()


def _measured(walker: Walker, found: Fitted, correct: bool) -> dict[str, Any]:
    samples, steps = len(walker.first), walker.response.steps
    entries = walker.first[0].numel()
    rule = extrapolated(walker.response, found.nodes, correct=correct)
    whole = []
    for j, change in enumerate(found.weights or ((),) * len(found.nodes)):
        added = np.zeros(len(found.nodes))
        added[j - np.arange(len(change))] += np.array(change)
        whole.append((rule.segment(j)[1] + added)[: j + 1].tolist())
    errors = parts(predictions(walker)[0], found.nodes, steps)
    return {
        "steps": steps,
        "samples": samples,
        "held_out": len(found.errors) if samples > 1 or not found.weights else 0,
        "held_out_db": found.decibels(),
        "predicted": [e / float(np.sqrt(samples * entries)) for e in errors],
        "error": list(found.stages),
        "rule": whole,
    }
