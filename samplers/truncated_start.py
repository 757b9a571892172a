"""Truncated start: begin from an anchor that is noised to a middle level."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from accel.family import Family
from accel.method import Method, Site, check_fields
from accel.noise import is_flow, noise_levels
from accel.step import Run, _called_by


@dataclass(frozen=True)
class TruncatedStart(Method):
    """Start where the noise is `start`, from a draft, a small video made larger, the last clip.

    Pass the anchor as `latents` of the pipeline's call: clean latents, of the shape its own would
    have (what `output_type="latent"` returns). Steps at higher noise are not run. Works in any
    pipeline, also where there is no image-to-image one. List it after a `Sampler`.

    Attributes:
        start: noise level in (0, 1] to begin at, the share of noise (a sigma that is not of a flow
            has the level sigma / (1 + sigma)); the first of the run's levels that is not above it.
            With 1 nothing is left out, and latents are noise, as ever.
        seed: of the noise, which is drawn per sample.
    """

    start: float = 0.6
    seed: int = 0

    level: ClassVar[str] = "sampler"
    claims: ClassVar[str] = "start"

    def __post_init__(self) -> None:
        check_fields(self, start=(0 < self.start <= 1, "above 0 and at most 1"))

    def supports(self, family: Family) -> bool:
        return True

    def expect(self, site: Site, steps: int) -> str:
        return f"computes the steps at noise levels up to {self.start:g}, from the latents passed"

    def install(self, site: Site) -> None:
        if self.start < 1:
            Starter(self, site).install()


class Starter:
    """At work on one pipeline, which may ask for its levels before its latents, or after."""

    def __init__(self, method: TruncatedStart, site: Site) -> None:
        self.method, self.site = method, site
        self._forget()

    def _forget(self) -> None:
        """What is known of a call of the pipeline, which may fail before its loop begins."""
        self._anchor: Tensor | None = None
        self._latents: Tensor | None = None
        self._cut = self._ready = False

    def install(self) -> None:
        site, own = self.site, self.site.pipe.scheduler
        if not hasattr(type(site.pipe), "prepare_latents"):
            raise ValueError(f"{type(site.pipe).__name__} has no prepare_latents to start from")
        if getattr(site.pipe, "audio_vae", None) is not None:
            raise ValueError(
                f"{type(site.pipe).__name__} steps its sound by a scheduler of its own making, "
                f"which TruncatedStart cannot cut with the one of the video; leave it out"
            )
        if own.order != 1:
            raise ValueError(
                f"{type(own).__name__} evaluates twice a step, and is not cut; use a solver of one "
                f"evaluation, such as Sampler()"
            )
        self._scheduler = own
        self._signature = inspect.signature(type(site.pipe).prepare_latents)
        label = "TruncatedStart"
        site.patches.method(self._scheduler, "set_timesteps", self._timed, label, always=True)
        site.patches.method(site.pipe, "prepare_latents", self._prepared, label, always=True)
        if hasattr(type(site.pipe), "check_inputs"):
            site.patches.method(site.pipe, "check_inputs", self._called, label, always=True)
        site.clock.on_begin.append(self._begin)

    def _called(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return call(*args, **kwargs)

    def _timed(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)
        scheduler = self._scheduler
        if not _called_by(self.site.pipe):
            return
        if self._ready:  # of a call that failed, in a pipeline that checks no inputs
            self._forget()
        _, sigmas = noise_levels(SimpleNamespace(), scheduler)
        if None in sigmas:
            raise ValueError(f"{type(scheduler).__name__} does not tell its noise levels")
        flow = is_flow(scheduler)
        found = [s if flow else s / (1 + s) for s in sigmas if s is not None]
        first = next((i for i, g in enumerate(found) if g <= self.method.start), None)
        if first is None:
            raise ValueError(
                f"none of this run's {len(found)} noise levels is at or below {self.method.start}; "
                f"the lowest is {found[-1]:.3f}: give more steps or a higher start"
            )
        scheduler.timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = scheduler.sigmas[first:]
        if hasattr(scheduler, "_levels"):
            scheduler._reset()
        self._cut = True
        self._noised()

    def _prepared(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._ready:
            self._forget()
        given = self._signature.bind(self.site.pipe, *args, **kwargs).arguments
        self._anchor = given.get("latents")
        if self._anchor is None:
            raise ValueError("TruncatedStart begins from latents: pass them, as latents=...")
        result = call(*args, **kwargs)
        rest = result[1:] if isinstance(result, tuple) else None
        held = (result if rest is None else result[0]).clone()
        self._latents = held
        self._noised()
        return held if rest is None else (held, *rest)

    def _noised(self) -> None:
        """Once levels and latents are there: noise the anchor, in the tensor the pipeline holds."""
        if not self._cut or self._anchor is None or self._latents is None:
            return
        scheduler, held = self._scheduler, self._latents
        anchor = self._anchor.to(held.device, held.dtype)
        generators = [
            torch.Generator("cpu").manual_seed(self.method.seed + i) for i in range(len(held))
        ]
        noise = randn_tensor(held.shape, generators, held.device, held.dtype)
        level = noise_levels(SimpleNamespace(), scheduler)[1][0]
        if is_flow(scheduler) and level is not None:
            held.copy_((1 - level) * anchor + level * noise)
        else:
            times = scheduler.timesteps[:1].repeat(len(held))
            held.copy_(scheduler.add_noise(anchor, noise, times))
        self._anchor = self._latents = None
        self._ready = True

    def _begin(self, run: Run) -> None:
        ready = self._ready
        self._forget()
        if not ready:
            raise RuntimeError(
                "the run did not begin from its anchor: list TruncatedStart after Sampler, and "
                "enable it again after the pipeline's scheduler was replaced"
            )
