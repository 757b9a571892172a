"""Makes a sample accelerated and, to compare, plain with the same seed in the same process."""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from .bar import Bar
from .enable import accelerated
from .inputs import BadInput, Request, arguments, generator, strength_of
from .load import Model, first_line
from .method import Method
from .metrics import WINDOW, psnr, ssim
from .outcome import Outcome, Sample
from .patch import PatchStack
from .plan import Plan
from .run_errors import RunFailed, told
from .step import Run

CHECKER = "accel.pipelines.tiny.checker"
WARM_UP_STEPS = 2


class LoopTimer:
    """Wall time of a plain pipeline's denoising loop, taken where the step clock takes it."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._since = 0.0

    def begin(self) -> Run:
        self.seconds, self._since = None, now()
        return Run(self, None)

    def end(self, run: Run) -> None:
        if self.seconds is None:
            self.seconds = now() - self._since

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[LoopTimer]:
        """Time the loops that `pipe` runs within the `with` block."""
        patches = PatchStack(self)
        if hasattr(type(pipe), "progress_bar"):
            patches.method(pipe, "progress_bar", self._bar, "loop timer", always=True)
        try:
            yield self
        finally:
            patches.undo()

    def _bar(self, call: Any, *args: Any, **kwargs: Any) -> Bar:
        timer: Any = self
        return Bar(call(*args, **kwargs), timer)


def now() -> float:
    """Seconds, once a GPU has finished what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def generate(
    model: Model,
    request: Request,
    *what: str | Method | Plan,
    compare: bool = False,
    max_bytes: int | None = None,
    keep_on: Literal["device", "cpu"] | None = None,
    keep_plain: Callable[[Sample], None] | None = None,
) -> Outcome:
    """Run `request` accelerated, and before that plain if `compare`.

    A comparison is one pair of runs after a short warm-up; without one there is no warm-up.

    Args:
        what, max_bytes, keep_on: as for `accel.enable`.
        keep_plain: called with the finished plain run where the accelerated one fails.

    Raises:
        BadInput: the request, the recipe or a method does not fit this model, or a method refuses
            the run.
        RunFailed: out of memory, or the model returned values that are not numbers.
    """
    pipe = model.pipe
    call = arguments(pipe, model.defaults, request)
    try:
        # refused here, before anything slow
        with accelerated(pipe, *what, max_bytes=max_bytes, keep_on=keep_on) as state:
            plan = state.plan
    except ValueError as error:
        raise BadInput(first_line(error)) from error
    plain = None
    if compare:
        _warm_up(pipe, call, request.seed)
        with LoopTimer().watching(pipe) as timer:
            plain = _run(model, call, request, "plain")
        plain = _with_loop(plain, timer.seconds)
    try:
        with accelerated(pipe, plan) as state:
            name = plan.name or "accelerated"
            sample = _run(model, call, request, name)
            report = state.report()
    except BaseException:  # an interrupt too
        if plain is not None and keep_plain is not None:
            keep_plain(plain)
        raise
    sample = _with_loop(sample, report.seconds_loop)
    if plain is None:
        return Outcome(model, plan, call, report, sample)
    small = min(sample.frames.shape[1:3]) < WINDOW
    return Outcome(
        model,
        plan,
        call,
        report,
        sample,
        plain,
        psnr(plain.frames[None], sample.frames[None]),
        None if small else ssim(plain.frames[None], sample.frames[None]),
    )


def _warm_up(pipe: Any, call: Mapping[str, Any], seed: int) -> None:
    strength = strength_of(pipe) or 1.0
    steps = max(WARM_UP_STEPS, math.ceil(1 / strength))
    pipe.set_progress_bar_config(disable=True)
    _call(pipe, {**call, "num_inference_steps": steps}, seed)


def _run(model: Model, call: Mapping[str, Any], request: Request, name: str) -> Sample:
    model.pipe.set_progress_bar_config(desc=name, file=sys.stderr, dynamic_ncols=True)
    begin = now()
    made = _call(model.pipe, call, request.seed)
    seconds = now() - begin
    video = made.ndim == 5
    frames = made[0] if video else made[:1]
    adherence = _adherence(frames, video, request.prompt) if model.shipped else None
    return Sample(frames, video, seconds, adherence=adherence)


def _with_loop(sample: Sample, seconds: float | None) -> Sample:
    return Sample(sample.frames, sample.video, sample.seconds, seconds, sample.adherence)


def _call(pipe: Any, call: Mapping[str, Any], seed: int) -> np.ndarray:
    """Frames (B, F, H, W, 3) or pictures (B, H, W, 3) in [0, 1]."""
    with told(pipe):
        made = pipe(**call, generator=generator(seed))[0]
    made = np.asarray(made)
    if made.ndim not in (4, 5) or made.shape[-1] != 3:
        raise BadInput(f"{type(pipe).__name__} makes neither pictures nor videos")
    if not np.isfinite(made).all():
        raise RunFailed("the model returned values that are not numbers; try --dtype float32")
    return made


def _adherence(frames: np.ndarray, video: bool, caption: str) -> float | None:
    """What the exact checker says; None for a caption or a size that it does not know."""
    checker = importlib.import_module(CHECKER)
    layout = np.moveaxis(frames, -1, 1)
    try:
        share, _ = checker.adherence(layout if video else layout[0], caption)
    except ValueError:
        return None
    return float(share)
