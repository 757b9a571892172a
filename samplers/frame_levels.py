"""Frame levels: every frame has a noise level of its own, and given frames have none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from accel.family import Family, arguments_of
from accel.method import Method, Site, check_fields
from accel.noise import is_flow
from accel.step import Run

from .adams_bashforth import AdamsBashforth
from .restart import Restart

FAMILIES = ("wan", "ltx")
"""Families whose models take a timestep for every token."""


@dataclass(frozen=True)
class FrameLevels(Method):
    """Vectorised timesteps (FVDM, arXiv 2410.03160): frames that are given are told timestep 0.

    Pass latents whose given frames are clean and whose others are noise, as `latents` of the
    pipeline's call. (0,) makes a video of a picture, (0, -1) what lies between two, (0, 1, 2) goes
    on with a video. Given frames stay as they are, bit for bit. Spends no less work; needs a model
    that was trained with a timestep per frame or token, as Wan 2.2 TI2V and LTX were: others take
    the input and were never shown the like.

    More generally each latent frame has a share of the run's noise level for its own: 0 is given, 1
    goes along, and a frame at 0.5 begins with half of the noise and loses it at half the pace. Such
    frames need flow Euler or Adams-Bashforth, whose steps are in proportion to the level.

    Attributes:
        frames: given latent frames; negative ones count from the end. Empty changes nothing.
        levels: instead, of every latent frame its share, 0 to 1, of the run's noise level.
    """

    frames: tuple[int, ...] = (0,)
    levels: tuple[float, ...] = ()

    level: ClassVar[str] = "sampler"

    def __post_init__(self) -> None:
        right = len(set(self.frames)) == len(self.frames)
        shares = all(0 <= level <= 1 for level in self.levels)
        if self.levels and self.frames == type(self).frames:
            object.__setattr__(self, "frames", ())
        check_fields(
            self,
            frames=(right, "frame numbers, each once"),
            levels=(shares and not (self.levels and self.frames), "0 to 1, and without frames"),
        )

    def supports(self, family: Family) -> bool:
        return family.name in FAMILIES

    def expect(self, site: Site, steps: int) -> str:
        if self.levels:
            return f"computes every step; latent frames at {self.levels} of the noise level"
        return f"computes every step; latent frames {self.frames} are given and stay"

    def install(self, site: Site) -> None:
        if self.frames or self.levels:
            Framer(self, site).install()


class Framer:
    """At work on one pipeline."""

    def __init__(self, method: FrameLevels, site: Site) -> None:
        self.method, self.site = method, site
        self._grid: tuple[int, int] = (0, 0)
        self._given: Tensor | None = None

    def install(self) -> None:
        clock = self.site.clock
        for name, module in self.site.denoisers.items():
            handler = functools.partial(self._denoise, module)
            self.site.patches.call(module, handler, f"FrameLevels on {name}")
        clock.step_handlers.append(self._step)
        clock.on_begin.append(self._forget)
        clock.on_end.append(self._forget)

    def _forget(self, run: Run) -> None:
        self._given = None

    def _denoise(
        self, module: torch.nn.Module, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        given = arguments_of(module, args, kwargs)
        hidden, timestep = given["hidden_states"], given["timestep"]
        if hidden.ndim == 5:
            _, height, width = getattr(module, "_orig_mod", module).config.patch_size
            tokens = hidden.shape[3] * hidden.shape[4] // (height * width)
            self._grid = hidden.shape[2], tokens
        else:
            self._grid = given["num_frames"], hidden.shape[1] // given["num_frames"]
        if timestep.ndim > 1 and timestep.shape[-1] > 1:
            raise ValueError(
                "this pipeline gives every token a timestep already; use it without FrameLevels"
            )
        given["timestep"] = per_token(timestep.reshape(-1), self._levels(), self._grid[1])
        return call(**given)

    def _levels(self) -> list[float]:
        """Of every latent frame its share of the noise level."""
        frames, levels = self._grid[0], self.method.levels
        if levels and len(levels) != frames:
            raise ValueError(
                f"FrameLevels.levels has {len(levels)} entries, but this video has {frames} latent "
                f"frames"
            )
        if levels:
            return list(levels)
        wrong = [f for f in self.method.frames if not -frames <= f < frames]
        if wrong:
            raise ValueError(f"there is no latent frame {wrong[0]}: this video has {frames}")
        held = {f % frames for f in self.method.frames}
        return [0.0 if f in held else 1.0 for f in range(frames)]

    def _held(self) -> list[int]:
        return [f for f, level in enumerate(self._levels()) if level == 0]

    def _step(
        self, call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any
    ) -> Any:
        held = self._held()
        slow = [f for f, level in enumerate(self._levels()) if 0 < level < 1]
        if slow:
            self._check(self.site.pipe.scheduler)
        if self._given is None:
            self._given = self._frames(sample, held).clone()
        before = self._frames(sample, slow).clone()
        result = call(output, t, sample, **rest)
        moved = result[0] if isinstance(result, tuple) else result.prev_sample
        self._frames(moved, held, self._given.to(moved.dtype))
        if slow:
            axis = 2 if moved.ndim == 5 else 1
            shares = before.new_tensor([self._levels()[f] for f in slow])
            shares = shares.reshape(-1, *[1] * (before.ndim - axis - 1))
            self._frames(moved, slow, before.lerp(self._frames(moved, slow).to(before), shares))
        return result

    @staticmethod
    def _check(scheduler: Any) -> None:
        plain = isinstance(scheduler, FlowMatchEulerDiscreteScheduler | AdamsBashforth)
        if not plain or isinstance(scheduler, Restart) or not is_flow(scheduler):
            raise ValueError(
                f"frames at a share of the noise level need steps in proportion to it, which those "
                f"of {type(scheduler).__name__} are not; use flow Euler, or Sampler() before "
                f"FrameLevels"
            )

    def _frames(self, latents: Tensor, chosen: list[int], put: Tensor | None = None) -> Tensor:
        """Some frames of latents (B, C, F, H, W) or (B, F S, C); `put` is written there."""
        axis = 2 if latents.ndim == 5 else 1
        apart = latents if axis == 2 else latents.unflatten(1, self._grid)
        held = torch.tensor(chosen, device=latents.device, dtype=torch.long)
        if put is not None:
            apart.index_copy_(axis, held, put)
        return apart.index_select(axis, held)


def per_token(timestep: Tensor, levels: Sequence[float], tokens: int) -> Tensor:
    """(B, frames * tokens) timesteps: for the tokens of each frame its share of those of (B,)."""
    shares = torch.tensor(levels, device=timestep.device, dtype=torch.float32)
    found = (timestep[:, None].float() * shares).to(timestep.dtype)
    return found.repeat_interleave(tokens, dim=1)
