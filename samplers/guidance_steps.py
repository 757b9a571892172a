"""Guidance on the steps where it moves the sample most, found by calibration."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from accel.batch_parts import is_tensor
from accel.calibration import Recording
from accel.method import Site, check_fields
from accel.noise import is_flow
from accel.step import Run, Step

from .guidance import Guidance, Rule, Unconditional
from .guidance_interval import computed

LARGEST = 1e3
"""Noise level that stands for the infinite one of schedules that end in pure noise."""


@dataclass(frozen=True)
class GuidedSteps(Guidance):
    """Guide on a chosen set of steps, and follow the conditional prediction on the others.

    Attributes:
        steps: the guided steps of a run of `total`; empty until `accel calibrate` has filled it.
        total: steps of the runs they were chosen for. Another number of steps is mapped onto it by
            the nearest fraction of the run.
        share: part of the steps that calibration chooses.

    Calibration keeps the steps at which guidance moves the sample most: the difference of the
    branches times the length of the step, in units of the clean sample, averaged over full runs
    (to first order, the error that leaving the step unguided makes). A static schedule.
    """

    steps: tuple[int, ...] = ()
    total: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        inside = all(0 <= step < self.total for step in self.steps)
        check_fields(
            self,
            total=(self.total >= 0, "0 or more"),
            steps=(inside, f"indices below total ({self.total})"),
            share=(0 < self.share <= 1, "a fraction above 0, at most 1"),
        )

    def guides(self, index: int, total: int) -> bool:
        """Whether step `index` of a run of `total` is guided."""
        scaled = (index + 0.5) * self.total / total
        return int(scaled) in self.steps

    def rule(self, site: Site) -> Rule:
        if not self.total:
            raise ValueError(
                "GuidedSteps has no steps yet: fill them with accel.calibrate(pipe, prompts, "
                "GuidedSteps(share=0.5)), or give steps and total"
            )
        return _Chosen(self)

    def install(self, site: Site) -> None:
        self.rule(site)  # refuse before a run
        super().install(site)

    def expect(self, site: Site, steps: int) -> str:
        return computed(site, steps, sum(self.guides(i, steps) for i in range(steps)))

    def recording(self) -> GuidanceRecording:
        return GuidanceRecording(self)


class _Chosen(Rule):
    def __init__(self, method: GuidedSteps) -> None:
        self.method = method

    def evaluates(self, step: Step, samples: int) -> Sequence[int]:
        return range(samples if self.method.guides(step.index, step.total) else 0)


@dataclass(frozen=True)
class GuidanceRecording(Recording):
    """By how much the branches differ, step by step."""

    method: GuidedSteps
    seen: Influence = field(default_factory=lambda: Influence())

    def install(self, site: Site) -> None:
        self.seen.scheduler = site.pipe.scheduler
        site.clock.on_begin.append(self.seen.begin)
        Unconditional(site, lambda: self.seen, "GuidedSteps:recording").attach()

    def fit(self) -> GuidedSteps:
        influence = self.seen.influence()
        count = max(1, round(self.method.share * len(influence)))
        best = sorted(range(len(influence)), key=lambda i: -influence[i])[:count]
        steps = tuple(sorted(best))
        return dataclasses.replace(self.method, steps=steps, total=len(influence))


class Influence(Rule):
    """Root mean square of cond - uncond by step, over the runs that were recorded."""

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.sigmas: list[float] = []
        self.found: dict[int, list[Tensor]] = defaultdict(list)

    def begin(self, run: Run) -> None:
        if None in run.sigmas:
            raise ValueError(
                f"{type(self.scheduler).__name__} tells no noise levels, which the influence of "
                f"guidance is measured with; calibrate with another scheduler"
            )
        self.sigmas = [sigma for sigma in run.sigmas if sigma is not None]

    def seen(self, step: Step, samples: Sequence[int], cond: Any, uncond: Any) -> None:
        c, u = (next(filter(is_tensor, tree_leaves(value))) for value in (cond, uncond))
        self.found[step.index].append((c.float() - u.float()).square().mean().sqrt())

    def influence(self) -> list[float]:
        """Of every step, in order; a step at which nothing was seen counts as the next one does.

        Raises:
            ValueError: the runs were not guided.
        """
        if not self.found:
            raise ValueError("the recorded runs were not guided; set guidance_scale above 1")
        lengths = step_lengths(self.sigmas, self.scheduler)
        differences: list[float] = []
        for index in reversed(range(len(lengths))):
            if index in self.found:
                differences.append(torch.stack(self.found[index]).mean().item())
            else:
                differences.append(differences[-1] if differences else 0.0)
        return [d * n for d, n in zip(reversed(differences), lengths, strict=True)]


def step_lengths(sigmas: Sequence[float], scheduler: Any) -> list[float]:
    """How far each step moves the sample, in units of the clean one, per unit of model output.

    x / alpha moves by the predicted noise times the change of noise over signal (Song et al. 2021,
    arXiv:2010.02502, eq. 14); a predicted velocity or sample tells of that noise alpha, or
    1 / sigma, as much. For a flow, alpha being 1 - sigma, that is the change of sigma over the
    alpha that is reached.
    """
    sigmas = [min(sigma, LARGEST) for sigma in sigmas]
    changes = [abs(a - b) for a, b in pairwise([*sigmas, 0.0])]
    kind = getattr(scheduler, "config", {}).get("prediction_type", "epsilon")
    if is_flow(scheduler):
        return [
            n / max(1 - s, 1 / LARGEST) for n, s in zip(changes, [*sigmas[1:], 0.0], strict=True)
        ]
    if kind == "epsilon":
        return changes
    noise_per_output = {
        "v_prediction": lambda sigma: (1 + sigma**2) ** -0.5,
        "sample": lambda sigma: 1 / sigma if sigma else 0.0,
    }[kind]
    return [n * noise_per_output(sigma) for n, sigma in zip(changes, sigmas, strict=True)]
