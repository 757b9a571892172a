"""Calibration: full runs are recorded, and a method is fitted to them."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import track

from .enable import accelerated
from .fingerprint import fingerprint
from .method import Method, Site
from .plan import Plan
from .registry import find_method, methods


@dataclass(frozen=True)
class Recording(Method):
    """Watches full runs, changes nothing in them, and fits a method to what it saw."""

    level: ClassVar[str] = "step"

    @abc.abstractmethod
    def fit(self) -> Method:
        """The method, fitted to the runs recorded so far.

        Raises:
            ValueError: too little was recorded.
        """

    def expect(self, site: Site, steps: int) -> str:
        return "records, and changes nothing"


@runtime_checkable
class Calibrated(Protocol):
    """A method with fields that calibration fills."""

    def recording(self) -> Recording:
        """What records the runs that this method is fitted to; its other fields stay."""
        ...


def calibratable() -> list[str]:
    """Names of the methods that can be calibrated."""
    return [name for name, kind in methods().items() if hasattr(kind, "recording")]


def calibrate(
    pipe: Any,
    prompts: Iterable[str],
    for_: str | Method = "teacache",
    *,
    seed: int = 0,
    progress: bool = True,
    **call: Any,
) -> Plan:
    """Run `pipe` in full on some prompts, and fit a method to what it did.

    Args:
        prompts: one run each; what is fitted is an average over them.
        for_: name of a method, or a method whose other fields are to be kept.
        seed: of the first run's noise; the next runs take the next seeds.
        progress: show a bar on stderr, one step for each run.
        call: arguments of the pipeline's call, such as num_inference_steps.

    Returns:
        A plan with the fitted method, and what it was made for: model, scheduler, steps, guidance.

    Raises:
        ValueError: a method that needs no calibration, no prompts, or a model it does not work on.
    """
    method = find_method(for_)() if isinstance(for_, str) else for_
    if not isinstance(method, Calibrated):
        raise ValueError(
            f"{type(method).__name__} is not calibrated; these are: {', '.join(calibratable())}"
        )
    texts = list(prompts)
    if not texts:
        raise ValueError("calibration needs at least one prompt")
    recording, found = method.recording(), {}
    known = inspect.signature(type(pipe).__call__).parameters
    options = {"output_type": "latent"} if "output_type" in known else {}
    shown = dict(getattr(pipe, "_progress_bar_config", {}))
    with accelerated(pipe, recording) as state:
        state._site.clock.on_begin.append(lambda run: found.update(fingerprint(pipe, run)))
        pipe.set_progress_bar_config(**{**shown, "disable": True})
        try:
            for i, text in enumerate(_bar(texts, type(method).__name__, progress)):
                generator = torch.Generator("cpu").manual_seed(seed + i)
                pipe(prompt=text, generator=generator, **{**options, **call})
        finally:
            pipe._progress_bar_config = shown
    note = f"calibrated on {len(texts)} sample{'s' if len(texts) > 1 else ''}"
    return Plan((recording.fit(),), note=note, fingerprint=found)


def _bar(texts: list[str], name: str, progress: bool) -> Iterable[str]:
    console = Console(stderr=True)
    return track(texts, f"calibrating {name}", console=console, disable=not progress)
