"""Sampler: a method that swaps a pipeline's scheduler for another solver, or its noise levels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from accel.family import Family
from accel.method import Method, Site, check_fields
from accel.noise import is_flow
from accel.registry import nearest
from accel.step import Run

from . import grids
from .adams_bashforth import AdamsBashforth
from .dpm_solver import DPMSolver
from .er_sde import ERSDE
from .integrator import Integrator
from .level_fit import LevelRecording
from .levels import FLOOR
from .pseudo_corrector import PseudoCorrector
from .refiner import Conditions
from .restart import Restart
from .stork import STORK
from .unipc import UniPC

SOLVERS: dict[str, type[Integrator]] = {
    "AdamsBashforth": AdamsBashforth,
    "DPMSolver": DPMSolver,
    "ERSDE": ERSDE,
    "PseudoCorrector": PseudoCorrector,
    "Restart": Restart,
    "STORK": STORK,
    "UniPC": UniPC,
}
FEW_STEP = ("LCM", "TCD", "SCM", "ConsistencyModel")


@dataclass(frozen=True)
class Sampler(Method):
    """Another solver, or other noise levels, so that fewer steps are needed; ask for fewer.

    The default, second-order Adams-Bashforth, needs one evaluation a step, like the scheduler it
    stands in for, and is deterministic. Nothing is skipped: the gain is that 12 steps do more than
    15 of Euler did; at 20 the error is little more than half of Euler's.

    Attributes:
        solver: a name of `SOLVERS`, or "own" to keep the pipeline's scheduler.
        options: of the solver's config, such as (("order", 3),); a dict is taken too.
        grid: where the steps lie: "model" (as diffusers has them), "uniform", "sway", "epss",
            "log-snr", "ays-sd", "ays-sdxl", "ays-svd", or "fitted" for `levels`.
        sway: coefficient of the grids "sway" and "epss", -1 to 1.75.
        levels: noise levels in [0, 1] fitted to a model by `accel calibrate`; runs of another
            number of steps lie as densely.
        steps: levels that calibration fits.

    The pipeline's own scheduler is given back when acceleration is disabled.
    """

    solver: str = "AdamsBashforth"
    options: tuple[tuple[str, bool | int | float | str], ...] = ()
    grid: Literal[
        "model", "uniform", "sway", "epss", "log-snr", "fitted", "ays-sd", "ays-sdxl", "ays-svd"
    ] = "model"
    sway: float = -1.0
    levels: tuple[float, ...] = ()
    steps: int = 10

    level: ClassVar[str] = "sampler"
    claims: ClassVar[str] = "sampler"

    def __post_init__(self) -> None:
        if isinstance(self.options, Mapping):
            object.__setattr__(self, "options", tuple(self.options.items()))
        falling = all(a > b for a, b in zip(self.levels, self.levels[1:], strict=False))
        own = self.solver == "own"
        check_fields(
            self,
            solver=(own or self.solver in SOLVERS, f"own, {', '.join(SOLVERS)}"),
            grid=(self.grid in grids.POLICIES, f"one of {', '.join(grids.POLICIES)}"),
            levels=(
                (self.grid == "fitted") == bool(self.levels)
                and falling
                and all(0 < v <= 1 for v in self.levels),
                'falling, in (0, 1], and with grid="fitted" only',
            ),
            steps=(self.steps >= 2, "2 or more"),
            options=(not (own and self.options), "empty where the solver is the pipeline's own"),
        )
        if not own:
            self._made({})

    def supports(self, family: Family) -> bool:
        return True

    def expect(self, site: Site, steps: int) -> str:
        what = "the pipeline's own solver" if self.solver == "own" else self.solver
        return f"computes every step, by {what}, at the levels of grid {self.grid}"

    def recording(self) -> LevelRecording:
        """Watches full runs; what it fits is `steps` levels for this solver."""
        return LevelRecording(
            self.steps, self.solver, tuple(o for o in self.options if o[0] != "grid")
        )

    def install(self, site: Site) -> None:
        own = getattr(site.pipe, "scheduler", None)
        if own is None or not hasattr(own, "config"):
            raise ValueError(f"{type(site.pipe).__name__} has no scheduler to stand in for")
        if any(name in type(own).__name__ for name in FEW_STEP):
            raise ValueError(
                f"{type(own).__name__} is the sampler of a distilled model, which no other solver "
                f"fits; leave Sampler out"
            )
        if self.solver != "own":
            self._place(site, own, self._made(own.config))
        elif self.grid != "model":
            other = type(own).from_config(own.config)
            provider = AdamsBashforth.from_config(own.config, **self._grid())
            moved = functools.partial(_moved, other, provider)
            self._place(site, own, other)
            site.patches.method(other, "set_timesteps", moved, f"levels of {self.grid}", True)
        now = site.pipe.scheduler
        if isinstance(now, PseudoCorrector):
            if now is not own and isinstance(own, PseudoCorrector):
                now.refiner = own.refiner
            if now.config.refiner_steps:
                Conditions(site).install(now)

    def _place(self, site: Site, own: Any, other: Any) -> None:
        """Put `other` in the place of the pipeline's `own` scheduler, of which copies are made."""
        reduced = functools.partial(_reduced, site.pipe, own, other)
        site.patches.set(site.pipe, "__reduce_ex__", reduced)
        site.patches.set(site.pipe, "scheduler", other, yields=True)

        def check(run: Run) -> None:
            now = site.pipe.scheduler
            if now is not other:
                raise ValueError(
                    f"the pipeline's scheduler was replaced, by {type(now).__name__}, while "
                    f"Sampler was enabled; disable acceleration, and enable Sampler again to have "
                    f"it stand in for that one"
                )

        site.clock.on_begin.append(check)

    def _grid(self) -> dict[str, Any]:
        return {"grid": self.grid, "sway": self.sway, "levels": list(self.levels) or None}

    def _made(self, config: Mapping[str, Any]) -> Integrator:
        kind = SOLVERS[self.solver]
        options = dict(self.options)
        known = kind._get_init_keys(kind) - Integrator._get_init_keys(Integrator)
        for name in sorted(options.keys() - known):
            raise ValueError(f"{self.solver} has no option {name!r}; {nearest(name, known)}")
        return kind.from_config(config, **self._grid() | options)


def _reduced(pipe: Any, own: Any, other: Any, protocol: Any) -> tuple[Any, ...]:
    """A pipeline as `copy` and pickle take it apart: with its own scheduler, not the other."""
    parts: tuple[Any, ...] = object.__reduce_ex__(pipe, protocol)  # type: ignore[assignment]
    made, arguments, state, *rest = parts
    state = {k: v for k, v in state.items() if k != "__reduce_ex__"}
    if state["scheduler"] is other:
        state["scheduler"] = own
    return made, arguments, state, *rest


def _moved(
    scheduler: Any, provider: Integrator, call: Callable[..., Any], *args: Any, **kwargs: Any
) -> None:
    """`set_timesteps` of a scheduler of diffusers, whose levels are then those of `provider`."""
    call(*args, **kwargs)
    times = scheduler.timesteps
    if scheduler.order != 1 or len(getattr(scheduler, "sigmas", ())) != len(times) + 1:
        raise ValueError(
            f"{type(scheduler).__name__} keeps no list of one noise level per step, so its levels "
            f"cannot be moved; use a solver of Sampler, such as AdamsBashforth"
        )
    provider.set_timesteps(len(times), device=times.device)
    sigmas = provider.sigmas
    if is_flow(scheduler) and "FlowMatch" not in type(scheduler).__name__:
        sigmas = sigmas.clamp(max=1 - FLOOR)  # they take the logarithm of 1 - sigma
    like = torch.as_tensor(scheduler.sigmas)
    scheduler.sigmas = sigmas.to(like.device, like.dtype)
    scheduler.timesteps = provider.timesteps
