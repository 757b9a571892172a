"""Planned sampling: computed steps, and the linear rule between them, fitted to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from accel.family import Family
from accel.method import Method, Site, check_fields

from .planning.calibrated import Task, calibrated
from .planning.gradient import Loss
from .planning.inside import HISTORY, Inside
from .planning.picture import draw
from .planning.sketch import INSIDE, inside
from .planning.stepper import Stepper
from .planning.transfer import moved
from .policies import Listed, explain_schedule

EMPTY: dict[str, Any] = {"weights": (), "limits": (), "guidance": (), "carrier": "output"}
"""Fields of which a calibration finds some."""


@dataclass(frozen=True)
class Planned(Method):
    """Compute the steps of a plan, and join them by a multistep rule fitted to this model.

    Made by `accel calibrate --for planned`, which runs a few full samples, or by
    `accel.calibrate(pipe, prompts, budget=12)`.

    Attributes:
        nodes: computed steps of `steps`; must begin with 0.
        steps: steps of a run that the plan was made for.
        guidance: the nodes that evaluate both branches of guidance; the others evaluate the
            conditional one, and take the difference for the line through the last two. Empty if
            all do. For runs of `steps` steps with guidance; others evaluate both.
        carrier: what is kept of a computed step: the guided "output"; "residual", what all blocks
            but the first add, so that the first sees the new input; or "module", the outputs of
            every attention and feed-forward.
        weights: for every node, what the fit adds to the weights of the newest outputs (newest
            first) over the segment that begins there; empty leaves the extrapolation as it is. Of
            other carriers, for every step, the weights of the newest that are kept; empty at nodes.
        correct: once a node is computed, put right what the forecast before it was off by.
        sigmas: noise levels of the steps the plan was made for. Runs of another number of steps
            compute those nearest to the nodes' levels, or at the same share of the run if empty.
        limits: for every node, the largest distance of the output there from its forecast, as a
            share of the output, that calls for nothing; empty if there is no guard.
        guard: compute one step more, in the middle of the coming segment, for a sample that is
            beyond its limit, and join the plan again.

    The scheduler's multistep history is replaced by the rule. Samples of a batch do not influence
    one another; where the guard asks for a step, it is evaluated for the whole batch, and used for
    the samples that asked. Without the guard, a static schedule in which no step waits for the
    host; with it, a node waits once. Keeps the guided outputs at the last few nodes.
    """

    nodes: tuple[int, ...] = ()
    steps: int = 50
    weights: tuple[tuple[float, ...], ...] = ()
    correct: bool = True
    sigmas: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    guard: bool = True
    guidance: tuple[int, ...] = ()
    carrier: Literal["output", "residual", "module"] = "output"

    level: ClassVar[str] = "step"
    claims: ClassVar[str] = "caching"

    def __post_init__(self) -> None:
        nodes = list(self.nodes)
        rising = not nodes or (nodes[0] == 0 and nodes == sorted(set(nodes)))
        a_node_each = "empty, or as long as nodes"
        output = self.carrier == "output"
        check_fields(
            self,
            nodes=(
                rising and (not nodes or nodes[-1] < self.steps),
                "rising step numbers that begin with 0 and are below `steps`",
            ),
            carrier=(output or self.carrier in INSIDE, f"output, {' or '.join(INSIDE)}"),
            weights=(
                len(self.weights) in (0, len(nodes) if output else self.steps),
                a_node_each if output else "empty, or as long as `steps`",
            ),
            sigmas=(len(self.sigmas) in (0, self.steps), "empty, or one for each of `steps`"),
            limits=(len(self.limits) in (0, len(nodes)), a_node_each),
            guidance=(
                not self.guidance or (self.guidance[0] == 0 and {*self.guidance} <= {*nodes}),
                "empty, or some of `nodes`, with 0",
            ),
        )

    def supports(self, family: Family) -> bool:
        return self.carrier == "output" or self.carrier in inside(family)

    def at(self, total: int, sigmas: Sequence[float | None]) -> tuple[int, ...]:
        """The nodes in a run of `total` steps at these noise levels."""
        return moved(self.nodes, (), self.sigmas, sigmas, self.steps)[0]

    def expect(self, site: Site, steps: int) -> str:
        if steps != self.steps:
            here = len(self.at(steps, [None] * steps))
            return f"a plan of {len(self.nodes)} of {self.steps} steps, moved to {here} of {steps}"
        kept = "the others are one linear combination of what is kept"
        if self.carrier != "output":
            kept = f"the others combine the last {HISTORY} of carrier {self.carrier!r}"
        if self.guidance:
            kept = f"both branches of guidance in {len(self.guidance)}; {kept}"
        if self.guard and self.limits:
            kept += "; whether the guard computes more depends on the sample"
        whole = self.guidance if self.guidance and site.family.fused else self.nodes
        return explain_schedule(Listed(whole), steps, kept)

    def search(
        self,
        pipe: Any,
        run: Callable[[int], Any],
        samples: int,
        budget: int,
        effort: str,
        progress: Callable[[float], None],
        loss: Loss | None = None,
    ) -> tuple[Planned, dict[str, Any]]:
        """A plan of `budget` computed steps for `pipe`, and what was measured on the way.

        `guard` and `correct` stay as they are, and so does a `carrier` inside the model; "output"
        is compared with the others if effort allows.

        Args:
            run: runs calibration sample i.
            effort: "normal", "high" or "gradient": how much may be measured.
            progress: called with the share of the work that is done.
            loss: for "gradient", what is made small: (last latents (m, …), true ones) -> (m,).
        """
        task = Task(budget, effort, loss, self.correct, self.carrier, progress)
        fields, measured = calibrated(pipe, run, samples, task)
        return replace(self, **{**EMPTY, **fields}), measured

    def draw(self, figure: Any, measured: Mapping[str, Any]) -> None:
        """Draw the plan on a matplotlib figure, with what calibration measured."""
        draw(figure, self.nodes, self.steps, self.sigmas, self.weights, measured)

    def install(self, site: Site) -> None:
        if not self.nodes:
            raise ValueError(
                "Planned has no nodes: a plan is fitted to a model, and made by `accel calibrate "
                "--for planned --out plan.json`; then enable Plan.load('plan.json')"
            )
        kind = Stepper if self.carrier == "output" else Inside
        kind(self, site).install()
