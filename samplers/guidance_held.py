"""Guidance from an older unconditional prediction, or on some steps only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils._pytree import tree_leaves, tree_map

from accel.batch_parts import cloned, is_tensor, tensors_in
from accel.method import Site, check_fields
from accel.step import Step

from .guidance import Guidance, Rule


@dataclass(frozen=True)
class HeldGuidance(Guidance):
    """Evaluate the unconditional branch on one of several steps, and hold it in between.

    Attributes:
        interval: steps from one evaluation of the unconditional branch to the next; 1 leaves
            nothing out.
        start: fraction of the run before which it is always evaluated.
        hold: what stands between: the last "difference" of the branches, which keeps the guidance;
            the last unconditional "output"; or "nothing", which leaves these steps unguided.

    The difference changes more slowly than either branch (the observation of FasterCache,
    arXiv:2410.19355, section 3.3, which also weighs its frequencies). Keeps one output. A static
    schedule. Where a pipeline evaluates nothing for a while, or its latents change their size, the
    branch is evaluated anew.
    """

    interval: int = 2
    start: float = 0.2
    hold: Literal["difference", "output", "nothing"] = "difference"

    def __post_init__(self) -> None:
        held = ("difference", "output", "nothing")
        check_fields(
            self,
            interval=(self.interval >= 1, "at least 1"),
            start=(0 <= self.start <= 1, "a fraction from 0 to 1"),
            hold=(self.hold in held, f"one of {', '.join(held)}"),
        )

    def evaluates(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` evaluates both branches."""
        begin = int(self.start * total)
        return index <= begin or (index - begin) % self.interval == 0

    def rule(self, site: Site) -> Rule:
        return _Held(self)

    def expect(self, site: Site, steps: int) -> str:
        count = sum(self.evaluates(i, steps) for i in range(steps))
        if site.family.fused:
            return f"computes {count} of {steps} steps whole, the others but half"
        return f"computes {steps} of {steps} steps in the conditional branch, {count} in the other"


class _Held(Rule):
    def __init__(self, method: HeldGuidance) -> None:
        self.method, self.kept, self.since = method, None, -1
        self.action = "reused" if method.hold == "nothing" else "forecast"
        self.shape: torch.Size | None = None

    def sized(self, shape: torch.Size) -> None:
        if self.kept is not None and shape != self.shape:
            self.kept, self.since = None, -1
        self.shape = shape

    def evaluates(self, step: Step, samples: int) -> Sequence[int]:
        age = step.index - self.since
        stale = self.since < 0 or age > self.method.interval
        due = self.method.evaluates(step.index, step.total)
        return range(samples if due or stale else 0)

    def seen(self, step: Step, samples: Sequence[int], cond: Any, uncond: Any) -> None:
        self.since = step.index
        if self.method.hold == "nothing" or self.method.interval == 1:
            return
        if self.method.hold == "output":
            self.kept = cloned(uncond)
        else:
            others = iter(tree_leaves(uncond))
            self.kept = tree_map(lambda c: _less(c, next(others)), cond)

    def guess(self, step: Step, cond: Any) -> Any:
        if self.method.hold == "nothing":
            return cond
        if self.method.hold == "output":
            return cloned(self.kept)
        deltas = iter(tree_leaves(self.kept))
        return tree_map(lambda c: _less(c, next(deltas)), cond)

    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in tensors_in(self.kept))


def _less(value: Any, other: Any) -> Any:
    return value - other if is_tensor(value) else value
