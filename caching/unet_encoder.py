"""The U-Net encoder carrier of Faster Diffusion: keep what the decoder reads of the encoder.

The decoder sees the noisy sample through `conv_in`, the down blocks and the mid block alone, and
the time by itself. Kept are their outputs, as they enter it; ControlNet adds to them afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

from accel.family import select_rows
from accel.memory import Kept
from accel.noise import run_span
from accel.step import Run

from .carriers import Carrier
from .state import State, apart


def encoder(unet: torch.nn.Module) -> list[str]:
    """Paths of the modules that make what the decoder reads, in the order they run."""
    mid = ["mid_block"] if getattr(unet, "mid_block", None) is not None else []
    return ["conv_in", *(f"down_blocks.{i}" for i in range(len(unet.down_blocks))), *mid]


class Encoder(Carrier):
    """Hold the encoder's outputs; the decoder runs at every step."""

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        unet = getattr(denoiser, "_orig_mod", denoiser)
        paths = encoder(unet)
        self.gate(name, denoiser)
        for path in paths:
            handler = functools.partial(self.stand_in, path)
            label = f"{self.label} on {name}.{path}"
            self.site.patches.call(unet.get_submodule(path), handler, label)
        return paths

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        return [Kept(path) for path in skipped]


class EncoderAhead(Encoder):
    """At a computed step run the decoder for all steps up to the next, as one batch.

    A skipped step calls nothing; the report counts its decoder there all the same, as if it ran
    in turn. Batches are laid out step by step, each as the pipeline's own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows = 0  # of the batch going on, 0 outside of one
        self._steps = 1
        self._begin = 0
        self.site.clock.on_begin.append(self._find)

    def _find(self, run: Run) -> None:
        """Where the run begins in the scheduler's timesteps; once, since it waits for the host."""
        self._begin = run_span(self.site.pipe, self.site.pipe.scheduler)[0]

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        return []  # as many outputs as steps that one batch serves, which the run decides

    def gate(self, name: str, denoiser: torch.nn.Module) -> None:
        handler = functools.partial(self._denoise, name, denoiser)
        self.site.patches.call(denoiser, handler, f"{self.label} on {name}")

    def _denoise(
        self,
        name: str,
        denoiser: torch.nn.Module,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self.decide(name, args, kwargs)
        state, step = self.cache.current, self.site.clock.step
        assert state is not None
        if not state.compute:
            history = state.histories[""]
            return self._of(history.forecast(step.index), step.index - history.anchors[0], state)
        steps = state.extra["steps"] = self._group(state)
        if steps == 1:
            value = call(*args, **kwargs)
        else:
            value = self._together(steps, denoiser, call, args, kwargs)
        self.keep("", value)
        return self._of(value, 0, state)

    def _of(self, value: Any, place: int, state: State) -> Any:
        """The output of one step among those of a batch."""
        return tree_map(lambda t: t.chunk(state.extra["steps"])[place], value)

    def _group(self, state: State) -> int:
        """How many steps the outputs of this one serve."""
        index, total = self.site.clock.step.index, self.site.clock.step.total
        later = range(index + 1, total)
        first, end = state.first, total - state.first
        return next((i for i in later if self.policy.computes(i - first, end)), total) - index

    def _together(
        self,
        steps: int,
        denoiser: torch.nn.Module,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        site, index = self.site, self.site.clock.step.index
        sample = args[0] if args else kwargs["sample"]
        rows = torch.arange(len(sample), device=sample.device).repeat(steps)
        several = select_rows(site.family, denoiser, args, kwargs, rows)
        begin = self._begin + index
        times = site.pipe.scheduler.timesteps[begin : begin + steps].to(sample.device)
        several["timestep"] = times.repeat_interleave(len(sample))
        self._rows, self._steps = len(rows), steps
        try:
            return call(**several)
        finally:
            self._rows, self._steps = 0, 1

    def stand_in(self, path: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Handle an encoder module: run it for the first step of a batch, repeat what it gives."""
        if not self._rows:
            return call(*args, **kwargs)
        args, kwargs = tree_map(self._first, (args, kwargs))
        leaves, build = apart(call(*args, **kwargs))
        return build([v.repeat(self._steps, *(1 for _ in v.shape[1:])) for v in leaves])

    def _first(self, value: Any) -> Any:
        batched = isinstance(value, torch.Tensor) and value.ndim and not len(value) % self._rows
        return value[: len(value) // self._steps] if batched else value
