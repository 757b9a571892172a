"""Steps side by side: many levels of one sample as a batch, within the loop of a pipeline.

A pipeline evaluates one level an iteration. Here each iteration evaluates a batch of levels that an
algorithm asks for; once the algorithm knows the end, the iterations that are left cost nothing.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from torch.utils._pytree import tree_map

from accel.family import arguments_of, select_rows
from accel.method import Site
from accel.noise import run_span
from accel.step import Run

from .adams_bashforth import AdamsBashforth
from .levels import Level, velocity_of
from .parallel_input import axis_beside, put_in
from .restart import Restart

LABELS: tuple[Callable[[float], float], ...] = (
    lambda t: t,
    lambda t: t / 1000,
    lambda t: 1 - t / 1000,
)
"""What pipelines tell their models for a timestep."""


@dataclass(frozen=True)
class Ask:
    """The state at level `start`, to be taken to level `end` by one evaluation at `start`."""

    start: int
    end: int
    state: Tensor


Algorithm = Generator[list[Ask], list[Tensor], tuple[Tensor, bool]]
"""Yields what it asks for, is sent the states reached; returns the last state, and whether it is
as near as was wanted."""


class Parallel:
    """An algorithm at work on one pipeline.

    Args:
        make: from the levels of a run and its first state.
    """

    def __init__(self, site: Site, name: str, make: Callable[[list[Level], Tensor], Algorithm]):
        self.site, self.name, self._make = site, name, make
        self._algorithm: Algorithm | None = None
        self._asks: list[Ask] = []
        self._end: Tensor | None = None
        self._latest: Tensor | None = None
        self._held: Any = None
        self._first: Tensor | None = None
        self._axis: int | None = None

    def install(self) -> None:
        site = self.site
        if len(site.denoisers) > 1:
            raise ValueError(
                f"{self.name} evaluates many levels at once, but this pipeline has a denoiser of "
                f"its own for high and for low ones"
            )
        if getattr(site.pipe, "controlnet", None) is not None:
            raise ValueError(
                f"{self.name} evaluates many levels at once, and the ControlNet of "
                f"{type(site.pipe).__name__} sees only one of them; use a pipeline without it"
            )
        self._checked(site.pipe.scheduler)
        for name, module in site.denoisers.items():
            handler = functools.partial(self._denoise, name, module)
            site.patches.call(module, handler, f"{self.name} on {name}")
            site.report.skip_set(self.name, self.name, {name: [""]})
        site.clock.on_begin.append(self._begin)
        site.clock.on_end.append(self._forget)
        site.clock.step_handlers.append(self._step)

    def _checked(self, scheduler: Any) -> Any:
        """The scheduler, if its steps look at nothing but the level and the state."""
        config = getattr(scheduler, "config", {})
        plain = isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or (
            isinstance(scheduler, DDIMScheduler)
            and not (config["clip_sample"] or config["thresholding"])
        )
        first = isinstance(scheduler, AdamsBashforth) and not isinstance(scheduler, Restart)
        first = first and config["order"] == 1 and not config["correct"]
        if not plain and not first:
            raise ValueError(
                f"{self.name} needs steps without a history, so that they can be taken side by "
                f"side; {type(scheduler).__name__} has one, or clips, or goes back. Use "
                f"flow Euler, DDIM without clip_sample, or "
                f"Sampler('AdamsBashforth', {{'order': 1}}) before it"
            )
        if config.get("stochastic_sampling"):
            raise ValueError(
                f"{self.name} takes the same steps again until they agree, and "
                f"{type(scheduler).__name__} with stochastic_sampling=True draws new noise at "
                f"each; set stochastic_sampling=False"
            )
        return scheduler

    def _begin(self, run: Run) -> None:
        self._forget(run)
        scheduler = self._checked(self.site.pipe.scheduler)
        cut, total = run_span(self.site.pipe, scheduler)
        converter = AdamsBashforth.from_config(scheduler.config)
        self._kind = converter.config.prediction_type
        self._sign = -1 if converter.config.invert_sigmas else 1
        self._times = [float(t) for t in scheduler.timesteps[cut : cut + total].tolist()]
        if isinstance(scheduler, DDIMScheduler):
            self._starts, self._ends = _of_ddim(scheduler, self._times)
        else:
            sigmas = scheduler.sigmas[cut : cut + total + 1].tolist()
            levels = [converter._level(float(s)) for s in sigmas]
            self._starts, self._ends = levels[:-1], levels[1:]

    def _forget(self, run: Run) -> None:
        self._algorithm = self._end = self._latest = self._held = self._first = None
        self._asks = []

    def _denoise(
        self,
        name: str,
        module: torch.nn.Module,
        call: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        note = self.site.clock.call
        assert note is not None
        if self._end is not None:
            note.leave_out(self.name, "reused")
            return self._held
        given = arguments_of(module, args, kwargs)
        latents = next(iter(given))
        sample, timestep = given[latents], given["timestep"]
        if self._algorithm is None and self._first is None:
            self._first = sample
        if self._algorithm is None:  # the first state is known at the step: evaluate it alone
            result = call(*args, **kwargs)
            self._held = tree_map(lambda leaf: leaf, result)
            return result
        count, rows = len(self._asks), sample.shape[0]
        samples = len(self._asks[0].state)
        branches = rows // samples
        index = torch.arange(rows).reshape(branches, 1, samples)
        index = index.expand(branches, count, samples).reshape(-1)
        wide = select_rows(self.site.family, module, args, kwargs, index)
        states = torch.cat([ask.state for ask in self._asks]).to(sample.dtype)
        states = states.repeat(branches, *[1] * (states.ndim - 1))
        wide[latents] = put_in(states, wide[latents], self._axis)
        wide["timestep"] = self._told(timestep, samples, branches)
        note.leave_out(self.name, "computed", share=1.0 - count)
        result = call(**wide)
        keep = torch.arange(rows)
        self._held = tree_map(
            lambda leaf: leaf[keep] if isinstance(leaf, torch.Tensor) else leaf, result
        )
        return result

    def _told(self, timestep: Tensor, samples: int, branches: int) -> Tensor:
        """The timestep argument for every row."""
        run = self.site.clock.run
        assert run is not None
        told, now = float(timestep.reshape(-1)[0]), self._times[run.index]
        near = [label for label in LABELS if abs(label(now) - told) <= 1e-3 * max(abs(told), 1e-3)]
        if not near or timestep.ndim > 1:
            raise ValueError(
                f"{self.name} does not know what this pipeline tells its model for timestep "
                f"{now:g} (it is {told:g})"
            )
        values = [near[0](self._times[ask.start]) for ask in self._asks for _ in range(samples)]
        return torch.tensor(values * branches, device=timestep.device).to(timestep.dtype)

    def _step(
        self, call: Callable[..., Any], output: Tensor, t: Any, sample: Tensor, **rest: Any
    ) -> Any:
        run = self.site.clock.run
        if rest.get("eta"):
            raise ValueError(
                f"{self.name} takes the same steps again until they agree, and eta={rest['eta']} "
                f"draws new noise at each; call the pipeline with eta=0"
            )
        self._unchanged(sample)
        if run is None or self._end is not None:
            return self._reply(self._end if self._end is not None else sample, rest)
        if self._algorithm is None:
            assert self._first is not None
            self._axis = axis_beside(self.name, self.site, self._first, sample)
            self._algorithm = self._make([*self._starts, self._ends[-1]], sample.float())
            self._asks = next(self._algorithm)
            if len(self._asks) != 1:
                raise AssertionError("an algorithm asks for the first state alone, first")
        try:
            self._asks = self._algorithm.send(self._reached(output, sample.dtype))
            if run.index + 1 == run.total:
                raise AssertionError(f"{self.name} asked for more evaluations than there are steps")
        except StopIteration as stop:
            end, near = stop.value
            self._end = end.to(sample.dtype)
            if not near:
                warnings.warn(
                    f"{self.name} did not come as near as its tolerance in {run.total} evaluations "
                    f"in a row; give more steps, or a larger tolerance",
                    stacklevel=2,
                )
        latest = self._end if self._end is not None else self._asks[-1].state.to(sample.dtype)
        self._latest = latest
        return self._reply(latest, rest)

    def _unchanged(self, sample: Tensor) -> None:
        """Refuse latents that are not those of the last step, but for rounding to 16 bits."""
        if self._latest is None:
            return
        away = (sample.float() - self._latest.float()).norm()
        if away > torch.finfo(torch.bfloat16).eps * self._latest.float().norm():
            raise ValueError(
                f"{self.name} takes many steps at once, and {type(self.site.pipe).__name__} "
                f"changes its latents between steps, as a mask over a given picture or a callback "
                f"does; use it without {self.name}"
            )

    def _reached(self, output: Tensor, dtype: torch.dtype) -> list[Tensor]:
        found = []
        for ask, one in zip(self._asks, output.chunk(len(self._asks)), strict=True):
            level, after = self._starts[ask.start], self._ends[ask.end - 1]
            state = ask.state.to(dtype).float()
            velocity = self._sign * velocity_of(self._kind, one.float(), state, level)
            moved = state / level.scale + (after.g - level.g) * velocity
            found.append((moved * after.scale).to(dtype).float())
        return found

    @staticmethod
    def _reply(state: Tensor, rest: dict[str, Any]) -> Any:
        state = state.clone()  # a pipeline may write into what it is given
        return SchedulerOutput(prev_sample=state) if rest.get("return_dict", True) else (state,)


def _of_ddim(scheduler: DDIMScheduler, times: list[float]) -> tuple[list[Level], list[Level]]:
    """The levels at which the steps from `times` start and end, as DDIM itself has them.

    A step ends T // N timesteps further down, which is where the next one starts only if the
    timesteps are spaced so ("leading").
    """
    length = scheduler.config["num_train_timesteps"] // scheduler.num_inference_steps

    def at(t: int) -> Level:
        bar = float(scheduler.alphas_cumprod[t] if t >= 0 else scheduler.final_alpha_cumprod)
        return Level(bar**0.5, (1 - bar) ** 0.5)

    return [at(int(t)) for t in times], [at(int(t) - length) for t in times]
