"""Deciding as it goes: how much something changed, and who of a batch may skip.

A batch is cut into parts that decide apart: one per sample (rows of both halves of a guided batch
together), or a single one where the published mean over the batch is asked for. Only one transfer
to the host is made per decision, whatever the size of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.method import Site

from .state import State


@dataclass(frozen=True)
class Threshold:
    """When a change is small enough to skip.

    Attributes:
        limit: changes below it may be skipped; 0 skips nothing.
        accumulate: add changes up since the last computed step, instead of judging each alone.
        warmup: first steps, all computed.
        tail: last steps, all computed.
        longest: most skipped steps in a row.
        most: most skipped steps in a run.
    """

    limit: float
    accumulate: bool = False
    warmup: int = 1
    tail: int = 0
    longest: int | None = None
    most: int | None = None

    def free(self, index: int, total: int) -> bool:
        """Whether step `index` of `total` may be skipped at all."""
        return self.limit > 0 and self.warmup <= index < total - self.tail

    def skips(self, part: State, change: float) -> bool:
        """Decide for one part, and count."""
        told = part.tally
        told.change = told.change + change if self.accumulate else change
        small = told.change < self.limit
        rested = self.longest is not None and told.streak >= self.longest
        spent = self.most is not None and told.skipped >= self.most
        return small and not rested and not spent


def parts_of(state: State, site: Site, batch: int, per_sample: bool) -> list[State]:
    """The parts of a state for `batch` rows, made if there are none; with their rows."""
    if not state.parts:
        groups = max(batch // halves(site), 1) if per_sample else 1
        for i in range(groups):
            rows = torch.arange(i, batch, groups) if groups > 1 else None
            state.parts.append(state.part(rows))
    return state.parts


def halves(site: Site) -> int:
    """How many rows of a batch belong to one sample."""
    pipe, fused = site.pipe, site.family.fused
    if not fused or site.clock.step.branch in fused:
        return 1
    guided = getattr(pipe, "do_classifier_free_guidance", None)
    if guided is None:
        scale = getattr(pipe, "guidance_scale", None)
        guided = scale is None or scale > 1
    return len(fused) if guided else 1


def relative(new: Tensor, old: Tensor, parts: Sequence[State]) -> Tensor:
    """mean|new - old| / mean|old| of every part: (P,).

    Args:
        new: (B, ...) values now.
        old: (B, ...) values to compare with.
    """
    return norms(new - old, parts) / norms(old, parts)


def read(values: Tensor) -> list[float]:
    """Values (P,) as floats, by one transfer."""
    return [values.item()] if values.numel() == 1 else values.tolist()


def norms(value: Tensor, parts: Sequence[State]) -> Tensor:
    """Sum of |value| (B, ...) over each part: (P,)."""
    if len(parts) == 1:
        return torch.linalg.vector_norm(value, ord=1, dtype=torch.float32).reshape(1)
    rows = torch.linalg.vector_norm(value.flatten(1), ord=1, dim=1, dtype=torch.float32)
    return rows.view(-1, len(parts)).sum(0)


def settle(
    state: State, rule: Threshold, changes: Sequence[float] | None
) -> tuple[list[State], list[State]]:
    """(parts to compute, parts to skip); None for the changes computes all."""
    computing: list[State] = []
    skipping: list[State] = []
    for i, part in enumerate(state.parts):
        skip = changes is not None and rule.skips(part, changes[i])
        told = part.tally
        told.streak = told.streak + 1 if skip else 0
        told.skipped += skip
        if not skip:
            told.change = 0.0
        part.compute = not skip
        (skipping if skip else computing).append(part)
    state.compute = bool(computing)
    return computing, skipping


def refresh(
    state: State, name: str, value: Tensor, computing: Sequence[State], own: bool = False
) -> None:
    """Keep `value` (B, ...) in `state.extra` at the rows of the parts that compute.

    Args:
        own: nobody else holds it, so it need not be copied.
    """
    old = state.extra.get(name)
    if old is None or len(computing) == len(state.parts):
        state.extra[name] = value.detach() if own else value.detach().clone()
    elif computing:
        rows = rows_of(computing, value.device)
        old.index_copy_(0, rows, value.index_select(0, rows))


def rows_of(parts: Sequence[State], device: Any) -> Tensor:
    """The rows (R,) of several parts of a batch."""
    return torch.cat([part.rows for part in parts if part.rows is not None]).to(device)


def of_part(value: Tensor, part: State) -> Tensor:
    """The rows of `value` (B, ...) that belong to `part`."""
    return value if part.rows is None else value[part.rows.to(value.device)]
