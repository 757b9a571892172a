"""Fingerprint: what a plan was made for, and a warning where a run differs from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from .step import Run

Fingerprint = Mapping[str, str | int | float]


def fingerprint(pipe: Any, run: Run) -> dict[str, str | int | float]:
    """What a run that begins has of: model, scheduler, steps, guidance.

    The model is the last part of its path or hub id, or the pipeline's class where it has neither.
    """
    name = PurePath(str(getattr(pipe, "name_or_path", "") or "")).name
    found: dict[str, str | int | float] = {"model": name or type(pipe).__name__}
    if getattr(pipe, "scheduler", None) is not None:
        found["scheduler"] = type(pipe.scheduler).__name__
    found["steps"] = run.total
    guidance = getattr(pipe, "guidance_scale", None)
    if isinstance(guidance, int | float):
        found["guidance"] = float(guidance)
    return found


def differences(made_for: Fingerprint, found: Fingerprint) -> list[str]:
    """Every entry that both have and that differs, in words."""
    return [
        f"{name} {made_for[name]}, this run has {found[name]}"
        for name in made_for
        if name in found and not _same(made_for[name], found[name])
    ]


def _same(one: str | int | float, other: str | int | float) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=1e-6)


class Watch:
    """Warns, once, when a run begins that differs from what a plan was made for."""

    def __init__(self, pipe: Any, made_for: Fingerprint) -> None:
        self._pipe, self._made_for, self._told = pipe, made_for, False

    def __call__(self, run: Run) -> None:
        found = differences(self._made_for, fingerprint(self._pipe, run))
        if found and not self._told:
            self._told = True
            warnings.warn(
                f"this plan was made for {'; '.join(found)}: its settings may not suit; calibrate "
                f"or tune it for this run",
                stacklevel=2,
            )
