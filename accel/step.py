"""Step and StepClock: where a running pipeline is. No method counts for itself.

Three words are never mixed: *index* (how many denoising iterations came before), *timestep* (what
the model is told), *sigma* (the noise level: flow in [0, 1], else sqrt((1 - abar) / abar)).
"""

from __future__ import annotations

import functools
import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .bar import Bar, loops, shows_bar
from .noise import noise_levels
from .patch import PatchStack, Scope, Slot, active


@dataclass(frozen=True)
class Step:
    """One evaluation of a denoiser.

    Attributes:
        run: number of the run, unique in this process.
        index: denoising iterations finished before this one.
        total: iterations of this run.
        sigma: noise level, None when the scheduler does not tell.
        branch: `cond`, `uncond`, another name the pipeline gives, or the number of the call
            within the iteration ("0" for a fused batch).
    """

    run: int
    index: int
    total: int
    sigma: float | None
    branch: str


@dataclass
class Call:
    """What became of one evaluation; methods write it by `leave_out`, the report keeps it.

    Attributes:
        action: "computed", "forecast" or "reused".
        skipped: skip sets left out (`Recorder.skips`), with the share of each that was: below 1
            where some rows of a batch, or some tokens, were computed.
        rows: share of the rows of the batch that went on to what is skipped.
        samples: which samples of the run this evaluation has, where a method evaluates some of
            them only; None for all.
    """

    step: Step
    denoiser: str
    action: str = "computed"
    skipped: dict[str, float] = field(default_factory=dict)
    rows: float = 1.0
    samples: tuple[int, ...] | None = None

    def leave_out(self, name: str, action: str, share: float = 1.0) -> None:
        """Note that `share` of the skip set `name` is not computed in this call."""
        self.action, self.skipped[name] = action, share

    def keep_rows(self, name: str, action: str, share: float) -> None:
        """Note that but `share` of the rows reach what comes inside of the skip set `name`."""
        self.leave_out(name, action, 0.0)
        self.rows *= share


@dataclass(eq=False)
class Run(Scope):
    """One pass through the denoising loop."""

    number: int = field(default_factory=itertools.count(1).__next__)
    total: int = 0
    sigmas: list[float | None] = field(default_factory=list)
    thread: threading.Thread = field(default_factory=threading.current_thread)
    index: int = 0
    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    failed: bool = False


class StepClock:
    """Follows the runs of one pipeline.

    A run begins at `pipe.progress_bar`, in modular pipelines at that of the block that loops, and
    in pipelines that show none at the scheduler's `set_timesteps`. It ends when the bar's context
    does, with or without an exception.
    """

    def __init__(
        self,
        pipe: Any,
        key: Hashable,
        patches: PatchStack,
        denoisers: Mapping[str, torch.nn.Module],
        branches: Mapping[str, str],
    ) -> None:
        self._pipe = weakref.ref(pipe)
        self._key, self._patches, self._branches = key, patches, branches
        self.denoisers = dict(denoisers)
        self.run: Run | None = None
        self.call: Call | None = None
        self._scheduler: Any = None
        self._barless = False
        self._context: str | None = None
        self.on_begin: list[Callable[[Run], None]] = []
        self.on_call: list[Callable[[Call], None]] = []
        self.on_end: list[Callable[[Run], None]] = []
        self.step_handlers: list[Callable[..., Any]] = []

    @property
    def step(self) -> Step:
        assert self.call is not None, "asked for the step outside of a denoiser call"
        return self.call.step

    def install(self) -> None:
        """Attach to the pipeline, its denoisers and its scheduler."""
        pipe, patches = self._pipe(), self._patches
        for name, module in self.denoisers.items():
            patches.call(module, functools.partial(self._denoise, name), f"step clock on {name}")
            named = getattr(module, "_orig_mod", module)
            if hasattr(type(named), "cache_context"):
                patches.method(named, "cache_context", self._named, "step clock")
        looping = list(loops(getattr(pipe, "_blocks", None)))
        self._barless = not looping and not shows_bar(type(pipe))
        for owner in looping or [pipe]:
            if hasattr(type(owner), "progress_bar"):
                patches.method(owner, "progress_bar", self._bar, "step clock", always=True)
        if hasattr(type(pipe), "maybe_free_model_hooks"):
            patches.method(pipe, "maybe_free_model_hooks", self._freed, "step clock", always=True)
        if self._barless and hasattr(type(pipe), "check_inputs"):
            patches.method(pipe, "check_inputs", self._checked, "step clock", always=True)
        self._adopt_scheduler()

    def _adopt_scheduler(self) -> None:
        scheduler = getattr(self._pipe(), "scheduler", None)
        if scheduler is self._scheduler or scheduler is None:
            return
        if self._scheduler is not None:
            self._patches.release(self._scheduler, "step")
            self._patches.release(self._scheduler, "set_timesteps")
        self._scheduler = scheduler
        self._patches.method(scheduler, "step", self._advance, "step clock")
        if self._barless:
            self._patches.method(
                scheduler, "set_timesteps", self._timesteps_set, "step clock", always=True
            )

    def last(self, handler: Callable[..., Any]) -> bool:
        """Whether a step handler is the last before the scheduler's own step, unpatched."""
        slot = Slot.of(self._scheduler, "step")
        alone = slot is not None and slot.before is None
        return alone and bool(self.step_handlers) and self.step_handlers[-1] == handler

    def _bar(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Bar:
        return Bar(call(*args, **kwargs), self)

    def _checked(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._adopt_scheduler()
        return call(*args, **kwargs)

    def _timesteps_set(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if _called_by(self._pipe()):
            self.begin()
        return result

    def _freed(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.run is not None and self.run.thread is threading.current_thread():
            self.end(self.run)
        return call(*args, **kwargs)

    def begin(self) -> Run:
        """Start a run in this thread, ending an older one that never reported its end."""
        thread = threading.current_thread()
        if self.run is not None:
            if self.run.thread is not thread and self.run.thread.is_alive():
                raise RuntimeError(
                    f"{type(self._pipe()).__name__} is already running in thread "
                    f"{self.run.thread.name!r}; an accelerated pipeline serves one thread at a "
                    f"time: give each thread a pipeline of its own (Pipeline.from_pipe)"
                )
            self.end(self.run)
        self._check_denoisers()
        self._adopt_scheduler()
        self._patches.adopt()
        for name, module in self.denoisers.items():
            inside = self._patches.bypassed(module)
            if inside:
                raise RuntimeError(
                    f"{name} was compiled around modules an enabled method wraps ({inside[0]} and "
                    f"{len(inside) - 1} more), which would silently do nothing; use a carrier at "
                    f"the denoiser (carrier='output'), or compile_repeated_blocks()"
                )
        total, sigmas = noise_levels(self._pipe(), self._scheduler)
        run = self.run = Run(self._key, active.get(), total=total, sigmas=sigmas)
        active.set(run)
        try:
            for hook in self.on_begin:
                hook(run)
        except BaseException:  # a method refuses the run
            run.failed = True
            self.end(run)
            raise
        return run

    def end(self, run: Run | None) -> None:
        """End `run` if it is the current one."""
        if run is None or run is not self.run:
            return
        self.run = self.call = self._context = None
        run.live = False
        if active.get() is run:
            active.set(run.outer)
        for hook in self.on_end:
            hook(run)

    def _check_denoisers(self) -> None:
        for name, module in self.denoisers.items():
            if getattr(self._pipe(), name, None) is not module:
                raise RuntimeError(
                    f"pipe.{name} was replaced after acceleration was enabled; call "
                    f"enable_acceleration(...) again so that the new one is accelerated"
                )

    def _denoise(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self.run
        if run is None:
            return call(*args, **kwargs)
        self.call = Call(self._stamp(run, name), name)
        result = call(*args, **kwargs)
        for hook in self.on_call:
            hook(self.call)
        return result

    def _stamp(self, run: Run, name: str) -> Step:
        branch = self._context
        if branch is not None:
            branch = self._branches.get(branch, branch)
        seen = run.calls.get((name, branch or ""), 0)
        run.calls[name, branch or ""] = seen + 1
        if branch is None:
            branch = self._branches.get(str(seen), str(seen))
        elif seen:
            branch = f"{branch}#{seen}"
        sigma = run.sigmas[run.index] if run.index < len(run.sigmas) else None
        return Step(run.number, run.index, run.total, sigma, branch)

    @contextmanager
    def _named(self, call: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator:
        outer, self._context = self._context, name
        try:
            with call(name, *args, **kwargs) as value:
                yield value
        finally:
            self._context = outer

    def _advance(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for handler in reversed(self.step_handlers):
            call = functools.partial(handler, call)
        result = call(*args, **kwargs)
        if self.run is not None:
            self.run.index += 1
            self.run.calls.clear()
        return result


def _called_by(pipe: Any) -> bool:
    """Whether a method of `pipe` is being run; its scheduler may also serve other pipelines."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_locals.get("self") is pipe:
            return True
        frame = frame.f_back
    return False
