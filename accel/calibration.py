"""Calibration: full runs are recorded, and a method is fitted to them."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import Progress

from .enable import accelerated
from .fingerprint import fingerprint
from .method import Method, Site
from .plan import Plan
from .prompts import GENERIC, drawn
from .registry import find_method, methods
from .step import Run


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


@runtime_checkable
class Searched(Protocol):
    """A method whose fields are found by running the pipeline in other ways besides."""

    def search(
        self,
        pipe: Any,
        run: Callable[[int], Any],
        samples: int,
        budget: int,
        effort: str,
        progress: Callable[[float], None],
        loss: Callable[..., Any] | None,
    ) -> tuple[Method, dict[str, Any]]:
        """The method that computes `budget` steps, found on `samples` runs, and what was measured.

        Args:
            run: runs sample i.
            effort: one of `EFFORTS`.
            progress: called with the share that is done.
            loss: what a fit by gradient makes small; the distance of latents if None.
        """
        ...


EFFORTS = ("normal", "high", "gradient")
"""How long a search may take: 1.5 or 5 full runs of every sample, or a descent after the latter."""


def calibratable() -> list[str]:
    """Names of the methods that can be calibrated."""
    return [
        name
        for name, kind in methods().items()
        if hasattr(kind, "recording") or hasattr(kind, "search")
    ]


def calibrate(
    pipe: Any,
    prompts: Iterable[str] | None = None,
    method: str | Method = "planned",
    *,
    steps: int = 50,
    budget: int | None = None,
    speedup: float | None = None,
    samples: int | None = None,
    effort: str = "normal",
    seed: int = 0,
    progress: bool = True,
    loss: Callable[..., Any] | None = None,
    **call: Any,
) -> Plan:
    """Run `pipe` in full on some prompts, and fit a method to what it did.

    Args:
        prompts: some of them are run, and what is fitted serves them all; if None, some of
            `accel.prompts.GENERIC`, which the shipped models do not know.
        method: name of a method, or a method whose other fields are to be kept.
        steps: of a run.
        budget: for "planned", steps of a run that are computed.
        speedup: instead of `budget`, how many times fewer.
        samples: runs, one each of as many prompts drawn by `seed`; if None, 8, or one a prompt
            where they are fewer. More runs than prompts go round them, with other noise.
        effort: for "planned", "normal" (the schedules predicted best are tried, at the cost of 1.5
            full runs of every sample in all), "high" (changes of the best one too; 5 runs), or
            "gradient" (as high; then all weights are fitted by descent through the sampler).
        seed: of the first run's noise; the next runs take the next seeds.
        progress: show a bar on stderr.
        loss: for "gradient", what is made small: a differentiable function of the last latents
            (m, …) and the true ones that returns (m,), such as a perceptual distance of both
            decoded; the logarithm of the mean square distance if None.
        call: other arguments of the pipeline's call, such as guidance_scale.

    Returns:
        A plan with the fitted method, what it was made for (model, scheduler, steps, guidance), and
        for "planned" what was measured: its error on samples left out of the fit, and its cost in
        full runs.

    Raises:
        ValueError: a method that needs no calibration, no prompts, fewer than one sample, a budget
            that is missing or out of place, or a model the method does not work on.
    """
    steps = call.pop("num_inference_steps", steps)
    wanted = find_method(method)() if isinstance(method, str) else method
    name = type(wanted).__name__
    if not isinstance(wanted, Calibrated | Searched):
        raise ValueError(f"{name} is not calibrated; these are: {', '.join(calibratable())}")
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, got one text: give [{prompts!r}]")
    texts = drawn(GENERIC if prompts is None else list(prompts), samples, seed)
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    computed = _budget(wanted, steps, budget, speedup)
    known = inspect.signature(type(pipe).__call__).parameters
    options: dict[str, Any] = {"output_type": "latent"} if "output_type" in known else {}
    options |= {"num_inference_steps": steps, **call}
    found: dict[str, str | int | float] = {}
    shown = dict(getattr(pipe, "_progress_bar_config", {}))
    bar = Progress(console=Console(stderr=True), disable=not progress)
    task = bar.add_task(f"calibrating {name}", total=len(texts))
    measured: dict[str, Any] = {}

    def run(i: int) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed + i)
        return pipe(prompt=texts[i], generator=generator, **options)

    def watched(recording: Recording) -> None:
        with accelerated(pipe, recording) as state:
            state._site.clock.on_begin.append(lambda r: found.update(fingerprint(pipe, r)))
            for i in range(len(texts)):
                run(i)
                bar.advance(task)

    pipe.set_progress_bar_config(**{**shown, "disable": True})
    try:
        with bar:
            if isinstance(wanted, Searched):
                fitted, measured = wanted.search(
                    pipe,
                    run,
                    len(texts),
                    computed,
                    effort,
                    lambda share: bar.update(task, completed=share * len(texts)),
                    loss,
                )
                total = getattr(fitted, "steps", steps)  # second-order solvers take two a step
                asked = {name: parameter.default for name, parameter in known.items()} | options
                found |= fingerprint(pipe, Run(None, None, total=total), asked)
            else:
                recording = wanted.recording()
                watched(recording)
                fitted = recording.fit()
    finally:
        pipe._progress_bar_config = shown
    note = f"calibrated on {len(texts)} sample{'s' if len(texts) > 1 else ''}"
    if "cost" in measured:
        note += f" at the cost of {measured['cost']:.1f} full runs"
    return Plan((fitted,), note=note, fingerprint=_kept(fitted, found), measured=measured)


def _budget(method: Any, steps: int, budget: int | None, speedup: float | None) -> int:
    """Computed steps; 0 for a method that has no say in it."""
    name = type(method).__name__
    if not isinstance(method, Searched):
        if budget is not None or speedup is not None:
            raise ValueError(f"{name} takes no budget and no speedup: set its fields instead")
        return 0
    if (budget is None) == (speedup is None):
        raise ValueError(
            f"{name} needs either budget (computed steps, such as 12 of 50) or speedup (such as 4)"
        )
    if speedup is not None and not speedup > 1:
        raise ValueError(f"speedup must be above 1, got {speedup}")
    return budget if budget is not None else max(1, round(steps / (speedup or 1)))


def _kept(method: Method, found: Mapping[str, str | int | float]) -> dict[str, str | int | float]:
    """What a plan of `method` was made for; a sampler's own scheduler and step count are not."""
    free = ("scheduler", "steps") if method.level == "sampler" else ()
    return {name: value for name, value in found.items() if name not in free}
