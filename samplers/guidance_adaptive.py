"""Adaptive guidance (Castillo et al. 2023, arXiv:2312.12487): stop once both branches agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from accel.batch_parts import is_tensor
from accel.method import Site, check_fields
from accel.step import Step

from .guidance import Guidance, Rule


@dataclass(frozen=True)
class AdaptiveGuidance(Guidance):
    """Guide until both predictions point the same way, and for the rest of the run no more.

    Attributes:
        threshold: guidance of a sample ends after the first evaluation at which the cosine between
            its conditional and unconditional prediction is above this; 1 never ends it.
        start: fraction of the run before which it does not end.

    The default is published for models that predict noise, where 25 % of the evaluations were
    saved. Predicted velocities differ in other ways: choose by `cosines` in `docs/guidance.md`.
    Samples of a batch end apart. One value per sample is read from the device at every step until
    the last sample has ended. Not for models with distilled guidance, which have one branch.
    """

    threshold: float = 0.991
    start: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=(-1 < self.threshold <= 1, "a cosine, above -1 and at most 1"),
            start=(0 <= self.start <= 1, "a fraction from 0 to 1"),
        )

    def rule(self, site: Site) -> Rule:
        return Adaptive(self, site.family.channels)

    def expect(self, site: Site, steps: int) -> str:
        return "depends on the sample; guides until both branches agree"


class Adaptive(Rule):
    """Keeps the samples that are still guided."""

    def __init__(self, method: AdaptiveGuidance, channels: int) -> None:
        self.method, self.channels = method, channels
        self.left: Sequence[int] | None = None

    def evaluates(self, step: Step, samples: int) -> Sequence[int]:
        if self.left is None:
            self.left = range(samples)
        return self.left

    def seen(self, step: Step, samples: Sequence[int], cond: Any, uncond: Any) -> None:
        if self.method.threshold == 1 or step.index < self.method.start * step.total:
            return
        agreement = cosines(cond, uncond, len(samples)).tolist()
        pairs = zip(samples, agreement, strict=True)
        self.left = [sample for sample, cosine in pairs if not cosine > self.method.threshold]


def cosines(cond: Any, uncond: Any, samples: int) -> Tensor:
    """Cosine between the first tensors of two outputs, (samples,), over all of a sample's entries.

    A variance that a model learns beside the noise is part of them; it hardly differs.
    """
    a, b = (next(filter(is_tensor, tree_leaves(value))) for value in (cond, uncond))
    a, b = (tensor.reshape(samples, -1).float() for tensor in (a, b))
    return torch.cosine_similarity(a, b, dim=1)
