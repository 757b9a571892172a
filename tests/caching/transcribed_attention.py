"""PAB and FasterCache as forward hooks on a plain pipeline: all is computed, then overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch.utils._pytree import tree_map

from tests.caching.transcribed import Counted


def pab(
    counted: Counted,
    pipe: DiffusionPipeline,
    modules: Mapping[torch.nn.Module, int],
    window: tuple[float, float],
) -> None:
    """PAB (2408.12588): `modules` with their ranges, a window in timesteps of the model."""
    last: dict[tuple[int, int], Any] = {}

    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        key, timestep = (id(module), counted.branch), float(pipe.scheduler.timesteps[counted.step])
        if counted.step % modules[module] != 0 and window[0] < timestep < window[1]:
            return last[key]
        last[key] = output
        return None

    counted.hooks += [module.register_forward_hook(hook) for module in modules]


def fastercache_attention(
    counted: Counted,
    modules: list[torch.nn.Module],
    total: int,
    evaluated: Callable[[int], set[str]],
    branches: Callable[[], tuple[str, ...]],
    age: int = 2,
) -> None:
    """Even steps after 7 of 30 extrapolate, if all evaluated branches were computed lately.

    `evaluated(step)` are the branches of a step that are not guessed, `branches()` those in the
    batch of the call going on.
    """
    computed: dict[tuple[int, str], list[tuple[int, Any]]] = {}

    def hook(module: torch.nn.Module, args: Any, output: Any) -> Any:
        step, names = counted.step, branches()
        running = [name for name in names if name in evaluated(step)]
        known = {name: computed.setdefault((id(module), name), []) for name in names}
        recent = all(known[name] and step - known[name][-1][0] < age for name in running)
        if step * 30 > 7 * total and step % 2 == 0 and recent:
            return parts(names, lambda name, i: extrapolated(known[name], step, i))
        for name in running:
            known[name].append((step, output))
        return None

    def parts(names: tuple[str, ...], make: Callable[[str, int], Any]) -> Any:
        halves = [make(name, i) for i, name in enumerate(names)]
        return tree_map(lambda *values: torch.cat(values), *halves)

    def extrapolated(past: list[tuple[int, Any]], step: int, i: int) -> Any:
        weight = 0.9 * (step * 30 / total - 7) / 20
        count = len(branches())

        def line(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
            new, old = new.chunk(count)[i], old.chunk(count)[i]
            return new + weight * (new - old)

        return tree_map(line, past[-1][1], past[-2][1])

    counted.hooks += [module.register_forward_hook(hook) for module in modules]


def bands(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shifted spectrum of every frame, as (low, high)."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(value), dim=(-2, -1))
    height, width = value.shape[-2:]
    y = torch.arange(height)[:, None] - height // 2
    x = torch.arange(width) - width // 2
    low = (y**2 + x**2 <= (min(height, width) // 5) ** 2).to(spectrum.dtype)
    return spectrum * low, spectrum * (1 - low)


class GuidanceCache:
    """The unconditional output of FasterCache; `at` is the step scaled to 30."""

    def __init__(self, boost: float, compounding: bool) -> None:
        self.boost, self.compounding = boost, compounding
        self.low = self.high = self.base = None

    def computed(self, uncond: torch.Tensor, cond: torch.Tensor) -> None:
        (ul, uh), (cl, ch) = bands(uncond), bands(cond)
        self.base = (ul - cl, uh - ch)
        self.low, self.high = self.base

    def guess(self, cond: torch.Tensor, at: float) -> torch.Tensor:
        if not self.compounding:
            self.low, self.high = self.base
        self.low = self.low * (self.boost if at <= 25 else 1)
        self.high = self.high * (self.boost if at >= 20 else 1)
        low, high = bands(cond)
        total = torch.fft.ifftshift(low + self.low + high + self.high, dim=(-2, -1))
        return torch.fft.ifft2(total).real
