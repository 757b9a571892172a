"""A run in stages of different resolution: what the model is given, what is stepped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from accel.family import arguments_of
from accel.method import Site
from accel.noise import is_flow
from accel.step import Call, Run
from accel.work import shapes_of

from .canvas import Canvas
from .layouts import LAYOUTS, call_grid, patch_of

FLOWS = ("wan", "hunyuan_video", "flux", "ltx", "qwenimage", "sd3", "lumina2")
PACKED = ("flux", "ltx", "qwenimage")
KEPT = ("sigmas", "timesteps", "_step_index", "_begin_index")
MIDWAY = 0.99
"""A run that begins below this noise level does not begin with noise."""


class Staging:
    """Changes resolution between steps, by the three seams.

    The pipeline makes noise of the whole; the first step is given some of it, and hands back
    latents of the first stage, with which the pipeline goes on. At the last step of a stage the
    scheduler's result is replaced by latents of the next, and what a multi-step solver has kept is
    cleared. Noise levels are this class's own: (from, to) of every step.
    """

    def __init__(self, site: Site, label: str) -> None:
        self.site, self.label = site, label
        self.stages: list[int] = []
        self.levels: list[tuple[float, float]] = []
        self._before: list[float | None] = []
        self.canvas: Canvas | None = None
        self.first: Tensor | None = None
        self.size: tuple[int, int] = (0, 0)
        self._clean: dict[str, Any] = {}
        self._whole: dict[tuple[str, str], Any] = {}
        self._calls: list[tuple[Call, Any]] = []
        self._skips = ""

    def plan(self, run: Run, sigmas: list[float]) -> None:
        """Fill `stages` (one per step) and `levels` for a run with noise levels (T + 1,)."""
        raise AssertionError("says when the resolution changes")

    def start(self, latents: Tensor) -> Tensor:
        """Noise of the whole as noise of the first stage."""
        raise AssertionError("says how the first stage begins")

    def arguments(self, called: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the denoiser that tell of sizes and places, for this stage."""
        raise AssertionError("says where the tokens are")

    def switch(self, result: Tensor, clean: Tensor, stage: int, level: float) -> Tensor:
        """Latents for `stage` at its first noise `level`, from those after the last step.

        Args:
            clean: x0 as predicted at the last step.
        """
        raise AssertionError("says how the resolution changes")

    def check(self) -> None:
        """Raise ValueError where this pipeline cannot change its resolution."""
        scheduler = self.site.pipe.scheduler
        if not is_flow(scheduler):
            raise ValueError(
                f"{self.label} renoises as flows do, x = (1 - g) x0 + g eps, and "
                f"{type(scheduler).__name__} is not set up for a flow"
            )
        if not getattr(scheduler, "movable", True):
            raise ValueError(
                f"{self.label} moves the noise levels of a run, which {type(scheduler).__name__} "
                f"lays out before it; use another solver, such as AdamsBashforth"
            )
        for name, denoiser in self.site.denoisers.items():
            config = getattr(denoiser, "_orig_mod", denoiser).config
            given, made = config.get("in_channels"), config.get("out_channels")
            packing = config.get("patch_size") if self.site.family.name in PACKED else 1
            if made and given not in (made, made * (packing or 1) ** 2):
                raise ValueError(
                    f"{self.label} cannot change the resolution of what is put beside the latents: "
                    f"{name} takes {given} channels and makes {made}"
                )

    def install(self) -> None:
        self.check()
        clock, report = self.site.clock, self.site.report
        for name, denoiser in self.site.denoisers.items():
            handler = functools.partial(self._denoise, name, denoiser)
            self.site.patches.call(denoiser, handler, f"{self.label} on {name}")
        clock.on_begin.append(self._begin)
        clock.on_end.append(self._end)
        clock.step_handlers.append(self._step)
        everything = {name: [""] for name in self.site.denoisers}
        self._skips = report.skip_set(self.label, f"{self.label}:resolution", everything)
        report.before_report.append(self._weigh)

    def _begin(self, run: Run) -> None:
        self.check()
        scheduler = self.site.pipe.scheduler
        sigmas = [float(s) for s in scheduler.sigmas.tolist()]
        if len(sigmas) != run.total + 1 or sigmas[0] < MIDWAY:
            raise ValueError(
                f"{self.label} begins with noise of a lower resolution, and this run begins "
                f"midway, with a picture (noise level {sigmas[0]:.2f}) or a part of the steps"
            )
        self._end(run)
        self._whole, self._calls = {}, []
        self.plan(run, sigmas)
        if not self.plainly:
            self._before = list(run.sigmas)
            run.sigmas[:] = [before for before, _ in self.levels]
        values = vars(scheduler).items()
        plain = (list, int, float, bool, Tensor, type(None))
        self._clean = {
            k: list(v) if isinstance(v, list) else v
            for k, v in values
            if k not in KEPT and isinstance(v, plain)
        }

    def _end(self, run: Run) -> None:
        self.stages, self.levels, self.canvas, self.first = [], [], None, None
        self._clean = {}

    @property
    def plainly(self) -> bool:
        """Whether nothing changes in this run."""
        return len(set(self.stages)) < 2

    def _denoise(
        self,
        name: str,
        denoiser: torch.nn.Module,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        run = self.site.clock.run
        if run is None or not self.stages or self.plainly:
            return call(*args, **kwargs)
        called = arguments_of(denoiser, args, kwargs)
        latents = next(iter(called))
        if self.canvas is None:
            self._note(denoiser, called)
        branch = self.site.clock.step.branch
        if run.index == 0:
            self._whole[name, branch] = shapes_of(((), dict(called)))
            called[latents] = self.start(called[latents])
        called |= self.arguments(called)
        if called["timestep"].ndim > 1:
            raise ValueError(
                f"{self.label} cannot change the resolution of timesteps given token by token"
            )
        called["timestep"] = self._told(run, called["timestep"])
        current = self.site.clock.call
        assert current is not None
        if (name, branch) in self._whole and self._smaller(called[latents]):
            current.leave_out(self._skips, "computed", 0.0)
            self._calls.append((current, shapes_of(((), dict(called)))))
        return call(**called)

    def _smaller(self, latents: Tensor) -> bool:
        assert self.first is not None or self.canvas is not None
        whole = next(iter(self._whole.values()))[1]
        return latents[0].numel() < next(iter(whole.values()))[0].numel()

    def _note(self, denoiser: torch.nn.Module, called: Mapping[str, Any]) -> None:
        family = self.site.family
        latents = next(iter(called.values()))
        grid = call_grid(denoiser, called, family.channels)
        packed = latents.ndim == 3
        side = 2 if packed and LAYOUTS[family.name].pixels == 4 else 1
        patch = (side, side) if packed else patch_of(denoiser)[1:]
        if packed and latents.shape[1] != grid[0] * grid[1] * grid[2]:
            raise ValueError(
                f"{self.label} cannot change the resolution of what is put beside the latents: "
                f"{latents.shape[1]} tokens on a grid of {grid}"
            )
        self.canvas = Canvas(grid, patch, packed, latents.ndim == 4)

    def _told(self, run: Run, timestep: Tensor) -> Tensor:
        """What the model is told, for the noise level of this stage."""
        old, new = self._before[run.index], self.levels[run.index][0]
        if not old or old == new:
            return timestep
        if self.site.family.name == "lumina2":
            return 1 - (1 - timestep) * (new / old)
        scaled = timestep.float() * (new / old)
        if not timestep.is_floating_point():
            scaled = scaled.round()
        return scaled.to(timestep.dtype)

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self.site.clock.run
        if run is None or not self.stages or self.plainly or self.canvas is None:
            return call(*args, **kwargs)
        names = ("model_output", "timestep", "sample")
        given = dict(zip(names, args, strict=False)) | kwargs
        others = {k: v for k, v in given.items() if k not in names}
        output, sample, index = given["model_output"], given["sample"], run.index
        if index == 0:
            self.first = sample.detach().clone()
            sample = self.start(sample)
        scheduler = self.site.pipe.scheduler
        before, after = self.levels[index]
        scheduler.sigmas[index], scheduler.sigmas[index + 1] = before, after
        clean = sample - before * output
        result = call(output, given["timestep"], sample, *args[3:], **others)
        if index + 1 < run.total and self.stages[index + 1] != self.stages[index]:
            reached = result[0] if isinstance(result, tuple) else result.prev_sample
            level = self.levels[index + 1][0]
            new = self.switch(reached, clean, self.stages[index + 1], level)
            for k, v in self._clean.items():
                vars(scheduler)[k] = list(v) if isinstance(v, list) else v
            if isinstance(result, tuple):
                return (new.to(reached.dtype), *result[1:])
            result.prev_sample = new.to(reached.dtype)
        return result

    def _weigh(self) -> None:
        """Before a report: what share of a call's work its lower resolution saved."""
        recorder = self.site.report
        for call, shapes in self._calls:
            whole = recorder.work_of(call.denoiser, *self._whole[call.denoiser, call.step.branch])
            less = recorder.work_of(call.denoiser, *shapes)
            if less.basis == whole.basis:
                call.skipped[self._skips] = 1 - less.total / whole.total


def shifted(level: float, factor: float) -> float:
    """A noise level, shifted: s g / (1 + (s - 1) g)."""
    return factor * level / (1 + (factor - 1) * level)


def places(like: Tensor, rows: int, columns: int) -> Tensor:
    """Flux's positions (rows * columns, 3) of tokens: 0, row, column."""
    ids = torch.zeros(rows, columns, like.shape[-1], dtype=like.dtype, device=like.device)
    ids[..., 1] += torch.arange(rows, dtype=like.dtype, device=like.device)[:, None]
    ids[..., 2] += torch.arange(columns, dtype=like.dtype, device=like.device)
    return ids.flatten(0, 1)
