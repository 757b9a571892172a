"""What a refiner of velocities is told: the arguments of the denoiser's last call, by branch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from accel.branches import guided, may_hold_both, rows_of_branch
from accel.family import arguments_of
from accel.method import Site
from accel.step import Run

Told = list[tuple[float, Mapping[str, Any]]]
"""Of each branch its weight in the guided prediction, and the denoiser's arguments."""


class Refiner(Protocol):
    """A small trained network that says what to add to a velocity (FlowTurbo, arXiv 2409.18128)."""

    def __call__(
        self, sample: Tensor, velocity: Tensor, timestep: float, conditions: Mapping[str, Any]
    ) -> Tensor:
        """What to add to `velocity`, of the same shape, for one branch.

        Args:
            sample: the state as that of a flow, (1 - g) x0 + g eps.
            velocity: the guided eps - x0 so far.
            timestep: as of the scheduler's `timesteps`.
            conditions: text, class and whatever else the denoiser was told in its last call of this
                branch, by argument name, without latents and timestep; empty where the scheduler
                runs without `Sampler`.
        """
        ...


def refined(refiner: Refiner, y: Tensor, velocity: Tensor, timestep: float, told: Told) -> Tensor:
    """The velocity and what is to be added: guidance weighs the branches' deltas, as it does the
    predictions, u + w (c - u)."""
    found = velocity
    for weight, conditions in told or [(1.0, {})]:
        found = found.add(refiner(y, velocity, timestep, conditions), alpha=weight)
    return found


class Conditions:
    """Notes on one pipeline what its denoiser is told, for the refiner of its scheduler.

    Raises:
        ValueError: the pipeline has two denoisers, or guides by a scale that it does not tell.
    """

    def __init__(self, site: Site) -> None:
        if len(site.denoisers) > 1:
            raise ValueError(
                "a refiner goes with one denoiser, but this pipeline has one for high and one for "
                "low noise levels; set refiner_steps=0"
            )
        self.site = site
        self._index = -1
        self._seen: dict[str, Mapping[str, Any]] = {}

    def install(self, scheduler: Any) -> None:
        for name, module in self.site.denoisers.items():
            handler = functools.partial(self._denoise, name, module)
            self.site.patches.call(module, handler, f"conditions of {name}")
        self.site.clock.on_begin.append(self._forget)
        self.site.clock.on_end.append(self._forget)
        self.site.patches.set(scheduler, "told", self.told)

    def _forget(self, run: Run) -> None:
        self._seen, self._index = {}, -1

    def _denoise(
        self,
        name: str,
        module: torch.nn.Module,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        site, step = self.site, self.site.clock.step
        if step.index != self._index:
            self._seen, self._index = {}, step.index
        if may_hold_both(site, args, kwargs) and guided(site.pipe):
            for branch in site.family.fused:
                self._seen[branch] = _rest(rows_of_branch(site, name, branch, args, kwargs))
        else:
            self._seen[step.branch] = _rest(arguments_of(module, args, kwargs))
        return call(*args, **kwargs)

    def told(self) -> Told:
        """Of each branch that was evaluated last, its weight and arguments."""
        if len(self._seen) < 2:
            return [(1.0, given) for given in self._seen.values()]
        pipe = self.site.pipe
        scale = getattr(pipe, "guidance_scale", None)
        other = "true_cfg_scale" in inspect.signature(type(pipe).__call__).parameters
        if other or not isinstance(scale, int | float) or set(self._seen) != {"cond", "uncond"}:
            raise ValueError(
                f"{type(pipe).__name__} does not tell the scale by which it guides "
                f"{', '.join(self._seen)}, so a refiner cannot follow; set refiner_steps=0, or run "
                f"it without guidance"
            )
        return [(float(scale), self._seen["cond"]), (1 - float(scale), self._seen["uncond"])]


def _rest(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without the latents, which come first, and the timestep."""
    latents = next(iter(given))
    return {name: value for name, value in given.items() if name not in (latents, "timestep")}
