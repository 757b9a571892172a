"""Plans of a benchmark: each fitted once on samples of their own, and judged like everything."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import accel
import accel.caching
from accel.noise import is_flow
from accel.plan import Plan
from benchmarks.cells import Cells
from benchmarks.descent import descended
from benchmarks.judge import Judge
from benchmarks.settings import Setting, plain, ready
from benchmarks.shapes import SETS, Model
from benchmarks.sweep import FIRST_BLOCK, Sweep, ratio_of

DESCENT = "descent"
ROWS = {
    "normal": "Planned",
    "high": "Planned, effort high",
    "gradient": "Planned, gradient fit",
    DESCENT: "Planned, weights descended",
}
"""Effort of the calibration -> row of the table, without the guard: its budget is exact.

The last is no effort of a calibration's: the plan of effort "normal", descended from."""
GUARDED = "Planned, with its guard"
OLD = "Planned, as it was"
ELSEWHERE = (OLD, f"{OLD}, with its guard", f"{OLD}, not fitted", "Planned, made anew")
"""Rows of plans under another condition; only the last is made there."""
SAMPLES = 8
"""Calibration samples of a plan where nothing else is said."""
SIDES = {"shapes-mmdit": 64}
"""In pixels, where it is not what the model's call defaults say: a CPU takes 18 s for its 128."""
SOURCES = Path(accel.caching.__file__).parent


def sized(model: Model) -> Model:
    """`model` at the size it is measured at."""
    if (side := SIDES.get(model.name)) is None:
        return model
    options = {**model.options, "height": side, "width": side}
    return Model(model.name, model.pipe, model.folder, options)


def code(effort: str = "normal") -> str:
    """A digest of what makes plans of an effort: those of another version are made anew."""
    total = hashlib.sha256()
    unused = {"picture.py"} | ({"gradient.py"} if effort in ("normal", "high") else set())
    for path in [SOURCES / "planned.py", *sorted((SOURCES / "planning").glob("*.py"))]:
        if path.name not in unused:
            total.update(path.read_bytes())
    return total.hexdigest()[:8]


def made(cells: Cells, model: str, checkpoint: str) -> list[dict[str, Any]]:
    """Cells of plans for a model, the oldest first."""
    wanted = ("plan", model, checkpoint)
    found = [
        cell
        for cell in cells.cells.values()
        if tuple(cell["fields"].get(k) for k in ("set", "model", "checkpoint")) == wanted
    ]
    return sorted(found, key=lambda cell: cell["date"])


def variants(planned: Any) -> list[Any]:
    """A method as it is judged: without its guard, with it, and without what was fitted."""
    bare, watched = (replace(planned, guard=on) for on in (False, True))
    return [bare, watched, replace(bare, weights=())]


def method_of(cell: dict[str, Any]) -> Any:
    """The method of a plan's cell."""
    return Plan.from_json(json.dumps(cell["result"]["plan"])).methods[0]


def shown(cells: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """How these plans are shown -> what the first of them that is shown so is run as."""
    found: dict[str, list[Any]] = {}
    for cell in cells:
        kinds = variants(method_of(cell))
        texts = [str(Setting("", kind)) for kind in kinds]
        new = {t: [k for k, own in zip(kinds, texts, strict=True) if own == t] for t in texts}
        found = new | found
    return found


def mark_of(method: Any, known: Mapping[str, Sequence[Any]]) -> str:
    """What tells `method` from another plan that is `shown` alike; "" for the first of them.

    Cells are named by what is shown, which of long fields is the beginning.
    """
    if method in known.get(str(Setting("", method)), (method,)):
        return ""
    return hashlib.sha256(repr(method).encode()).hexdigest()[:8]


class Bench:
    """Plans and their rivals for one model, solver and number of steps.

    Args:
        rivals: rows of the fidelity benchmark's sweep.
    """

    def __init__(self, judge: Judge, rivals: Iterable[str] = ()) -> None:
        self.judge, self._rivals = judge, tuple(rivals)
        denoiser = judge.model.denoiser
        blocks = getattr(denoiser, "transformer_blocks", None) or getattr(denoiser, "blocks", ())
        spaced = () if is_flow(judge.model.pipe.scheduler) else (":trailing", ":linspace")
        self._sweep = Sweep(
            judge.attempt,
            judge.magnitudes,
            judge.sampler,
            ("", *spaced),
            steps=judge.steps,
            fitted=judge.fitted,
            first_block=1 / len(blocks) if blocks else FIRST_BLOCK,
        )

    def plan(self, budget: int, samples: int = SAMPLES, effort: str = "normal") -> Plan:
        """A plan of `budget` computed steps, fitted once.

        Args:
            effort: one of `ROWS`.
        """
        judge = self.judge

        def compute() -> dict[str, Any]:
            own = judge.model.samples("calibration", samples)
            if effort == DESCENT:
                closed = self.plan(budget, samples)
                with ready(judge.model.pipe, plain(judge.sampler, judge.steps)):
                    plan = descended(judge.model, closed, own)
                return {"plan": json.loads(plan.to_json())}
            with ready(judge.model.pipe, plain(judge.sampler, judge.steps)) as pipe:
                plan = accel.calibrate(
                    pipe,
                    [s.caption for s in own],
                    steps=judge.steps,
                    budget=budget,
                    samples=samples,
                    effort=effort,
                    seed=SETS["calibration"],
                    progress=False,
                    **judge.model.options,
                )
            return {"plan": json.loads(plan.to_json())}

        found = judge.cells.run(
            compute,
            model=judge.model.name,
            checkpoint=judge.model.checkpoint[:12],
            set="plan",
            solver=judge.sampler,
            steps=judge.steps,
            budget=budget,
            samples=samples,
            effort=effort,
            guidance=judge.model.options["guidance_scale"],
            height=judge.model.options["height"],
            under=judge.under,
            code=code(effort),
        )
        return Plan.from_json(json.dumps(found["plan"]))

    def setting(self, plan: Plan, row: str, guard: bool = False) -> Setting:
        """How a plan is run."""
        judge, planned = self.judge, plan.methods[0]
        method = variants(planned)[guard]
        known = shown(made(judge.cells, judge.model.name, judge.model.checkpoint[:12]))
        return Setting(row, method, judge.sampler, judge.steps, mark_of(method, known))

    def judged(
        self, plan: Plan, row: str, budget: int, count: int, guard: bool = False
    ) -> dict[str, Any]:
        """A plan on `count` held-out samples; under another condition it is moved there."""
        setting, steps = self.setting(plan, row, guard), self.judge.steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it was made for something else
            return self.judge.evaluate(setting, label(budget, steps), count)

    def rivals(self, budget: int) -> tuple[list[Setting], list[str]]:
        """The best setting of every row that computes no more than `budget` steps' work.

        And why rows were left out that do not know this model.
        """
        ratio, found, left_out = ratio_of(budget, self.judge.steps), [], []
        for row in self._rivals:
            try:
                setting = self._sweep.choose(row, ratio)
            except ValueError as error:
                left_out.append(f"{row}: {error}")
                continue
            if setting is not None:
                found.append(setting)
        return found, left_out


def label(budget: int, steps: int) -> float:
    """How many times fewer steps, as cells and tables name it."""
    return round(steps / budget, 4)
