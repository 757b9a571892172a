"""Frame levels: every frame has a noise level of its own, and given frames have none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from accel.family import Family, arguments_of
from accel.method import Method, Site, check_fields
from accel.step import Run

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

    Attributes:
        frames: given latent frames; negative ones count from the end. Empty changes nothing.
    """

    frames: tuple[int, ...] = (0,)

    level: ClassVar[str] = "sampler"

    def __post_init__(self) -> None:
        right = len(set(self.frames)) == len(self.frames)
        check_fields(self, frames=(right, "frame numbers, each once"))

    def supports(self, family: Family) -> bool:
        return family.name in FAMILIES

    def expect(self, site: Site, steps: int) -> str:
        return f"computes every step; latent frames {self.frames} are given and stay"

    def install(self, site: Site) -> None:
        if self.frames:
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
        given["timestep"] = per_token(timestep.reshape(-1), self._held(), *self._grid)
        return call(**given)

    def _held(self) -> list[int]:
        frames = self._grid[0]
        wrong = [f for f in self.method.frames if not -frames <= f < frames]
        if wrong:
            raise ValueError(f"there is no latent frame {wrong[0]}: this video has {frames}")
        return sorted({f % frames for f in self.method.frames})

    def _step(
        self, call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any
    ) -> Any:
        if self._given is None:
            self._given = self._frames(sample).clone()
        result = call(output, t, sample, **rest)
        moved = result[0] if isinstance(result, tuple) else result.prev_sample
        self._frames(moved, self._given.to(moved.dtype))
        return result

    def _frames(self, latents: Tensor, put: Tensor | None = None) -> Tensor:
        """The given frames of latents (B, C, F, H, W) or (B, F S, C); `put` is written there."""
        axis = 2 if latents.ndim == 5 else 1
        apart = latents if axis == 2 else latents.unflatten(1, self._grid)
        held = torch.tensor(self._held(), device=latents.device)
        if put is not None:
            apart.index_copy_(axis, held, put)
        return apart.index_select(axis, held)


def per_token(timestep: Tensor, held: list[int], frames: int, tokens: int) -> Tensor:
    """(B, frames * tokens) timesteps: those of (B,), and 0 for the tokens of held frames."""
    found = timestep[:, None].repeat(1, frames)
    found[:, held] = 0
    return found.repeat_interleave(tokens, dim=1)
