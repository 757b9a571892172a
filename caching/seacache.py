"""SeaCache (2602.18993): skip while the latents, filtered to what is signal by now, are steady."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.method import Site, check_fields
from accel.noise import is_flow

from .adaptive import Threshold
from .forecasters import taylor
from .judge import ChangeJudge, SpanCaching, install_span
from .latents import grid_of
from .span import Entry


@dataclass(frozen=True)
class SeaCache(SpanCaching):
    """Skip the stack of blocks while the denoised spectrum of the latents changes little.

    The latents are filtered as by Wiener, per axis with the gain a P / (a^2 P + g^2), where a and g
    are the scales of signal and noise at this step and P = 1 / |f|^`power` is the spectrum expected
    of the signal; the mean gain is 1. Relative changes of the result from step to step add up until
    they reach the threshold. A skipped step extrapolates what the blocks added.

    Attributes:
        threshold: on the sum; 0 skips nothing. Published: 0.25.
        order: of the extrapolation of what the blocks add: 0 reuses it, 1 follows a line.
        power: of the expected spectrum. Published: 3 for video.
        warmup: first steps, all computed.
        tail: last steps, all computed.
        longest: most skipped steps in a row.
        per_sample: samples of a batch decide apart, and those that compute are gathered. False
            takes the mean over the batch, so that samples share their decisions.

    Costs one host synchronisation per evaluation of the denoiser.
    """

    threshold: float = 0.25
    order: int = 1
    power: float = 3.0
    warmup: int = 1
    tail: int = 1
    longest: int | None = 2
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=(self.threshold >= 0, "0 or more"),
            order=(0 <= self.order <= 3, "from 0 to 3"),
            power=(self.power > 0, "above 0"),
            warmup=(self.warmup >= 1, "at least 1"),
            tail=(self.tail >= 0, "0 or more"),
            longest=(self.longest is None or self.longest >= 1, "at least 1, or None"),
        )

    def expect(self, site: Site, steps: int) -> str:
        return (
            f"runs no block while the filtered latents change by less than {self.threshold:.0%} in "
            f"all; how often depends on the sample; keeps {self.order + 1} hidden states and 1 "
            f"latent per branch"
        )

    def install(self, site: Site) -> None:
        rule = Threshold(self.threshold, True, self.warmup, self.tail, self.longest)

        judge = ChangeJudge(
            site, rule, self.per_sample, SignalFilter(site, self.power), previous=True
        )
        install_span(site, "SeaCache", judge, taylor, self.order + 1)


class SignalFilter:
    """The filtered latents of a call of the denoiser, (B, C, ...)."""

    def __init__(self, site: Site, power: float) -> None:
        self.site, self.power = site, power
        self._grid: tuple[Any, tuple[int, ...]] = (None, ())

    def __call__(self, entry: Entry) -> Tensor:
        called = entry.called
        latents: Tensor = next(iter(called.values()))
        if latents.ndim > 3:
            latents = latents.movedim(self.site.family.channels, 1)
        else:
            key = (self.site.clock.step.run, latents.shape)
            if self._grid[0] != key:  # read once a run: positions are on the device
                self._grid = (key, grid_of(called))
            latents = latents.transpose(1, 2).unflatten(2, self._grid[1])
        return filtered(latents, *scales(self.site), self.power)


def scales(site: Site) -> tuple[float, float]:
    """How much signal and how much noise the latents of this step hold.

    Raises:
        ValueError: the scheduler does not tell its noise level.
    """
    sigma, scheduler = site.clock.step.sigma, site.pipe.scheduler
    if sigma is None:
        raise ValueError(
            f"SeaCache needs the noise level, which {type(scheduler).__name__} does not tell; use "
            f"another scheduler or another method"
        )
    if is_flow(scheduler):
        return 1 - sigma, sigma
    signal = (1 + sigma**2) ** -0.5
    return signal, (1 - signal**2) ** 0.5


def filtered(latents: Tensor, signal: float, noise: float, power: float) -> Tensor:
    """The latents with a gain per frequency, in float32.

    Args:
        latents: (B, C, ...) on a grid of one to three axes.
        signal: scale of the signal in them, in [0, 1].
        noise: scale of the noise in them, in [0, 1].
        power: exponent of the spectrum expected of the signal.
    """
    signal, noise = (min(max(scale, 1e-6), 1 - 1e-6) for scale in (signal, noise))
    axes = range(2, latents.ndim)
    gain = torch.ones((), device=latents.device)
    for axis in axes:
        frequency = torch.fft.fftfreq(latents.shape[axis], device=latents.device)
        expected = 1 / (frequency.abs() ** power + 1e-16)
        own = signal * expected / (signal**2 * expected + noise**2)
        gain = gain[..., None] * own
    spectrum = torch.fft.fftn(latents.float(), dim=tuple(axes))
    return torch.fft.ifftn(spectrum * (gain / gain.mean()), dim=tuple(axes)).real
