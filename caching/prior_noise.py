"""Prior-noise injection of Faster Diffusion (2312.09608): give texture back late in the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from accel.method import Site
from accel.noise import run_span
from accel.step import Run


class PriorNoise:
    """z <- z + strength * z_T before each scheduler step of the later half, t / T_train < 0.5.

    z_T are the latents the run began with. Schedulers that scale latents by sqrt(1 + sigma^2) get
    the same in their scale. Nothing is added where z_T is no noise or an addition is not what it
    was published as: runs that begin midway (image-to-image), second-order schedulers, UniPC
    (whose corrector starts from the latents before), flow and continuous-time models.

    Args:
        strength: 0.003 as published; the number of additions grows with the number of steps.
    """

    def __init__(self, site: Site, strength: float) -> None:
        self._site, self._strength = site, strength
        self._factors: list[float] = []
        self._prior: torch.Tensor | None = None
        site.clock.on_begin.append(self._begin)
        site.clock.on_end.append(self._end)
        site.clock.step_handlers.append(self._step)

    def _begin(self, run: Run) -> None:
        self._prior, self._factors = None, factors(self._site.pipe, run, self._strength)

    def _end(self, run: Run) -> None:
        self._prior, self._factors = None, []

    def _step(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        run = self._site.clock.run
        if run is None or run.index >= len(self._factors) or not any(self._factors):
            return call(*args, **kwargs)
        sample = args[2] if len(args) > 2 else kwargs["sample"]
        if run.index == 0:
            self._prior = sample.detach().clone()  # schedulers and callbacks may write into it
        factor = self._factors[run.index]
        if not factor or self._prior is None:
            return call(*args, **kwargs)
        sample = torch.add(sample, self._prior, alpha=factor)
        if len(args) > 2:
            return call(*args[:2], sample, *args[3:], **kwargs)
        return call(*args, **{**kwargs, "sample": sample})


def factors(pipe: Any, run: Run, strength: float) -> list[float]:
    """What z_T is multiplied by at each step; empty where nothing is to be added."""
    scheduler = pipe.scheduler
    config, cut = scheduler.config, run_span(pipe, scheduler)[0]
    unsuited = (
        getattr(scheduler, "alphas_cumprod", None) is None
        or getattr(scheduler, "order", 1) != 1
        or hasattr(scheduler, "disable_corrector")
        or config.get("use_flow_sigmas", False)
        or config.get("timestep_type", "discrete") == "continuous"
    )
    if unsuited or cut > 0 or not strength:
        return []
    start = float(scheduler.init_noise_sigma)
    times = scheduler.timesteps[: run.total].tolist()
    late = [t / config.num_train_timesteps < 0.5 for t in times]
    if start == 1:
        return [strength * each for each in late]
    scales = [math.hypot(1.0, sigma or 0.0) / start for sigma in run.sigmas]
    return [strength * s * each for s, each in zip(scales, late, strict=True)]
