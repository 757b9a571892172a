"""FlowTurbo's pseudo-corrector: Heun's rule that takes its first slope from the step before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .integrator import Integrator
from .multistep import integral
from .refiner import Refiner, Told, refined


class PseudoCorrector(Integrator):
    """Second order at one evaluation a step (FlowTurbo, arXiv 2409.18128, algorithm 1).

    A step of Heun evaluates at its start and at its predicted end. A pseudo-corrector step takes
    for its start what the step before found at its predicted end: x~ = x + h d, d' = v(x~),
    x+ = x + h (d + d') / 2, and hands d' on. The first `heun_steps` are Heun's, the others are
    pseudo-corrector steps, and the last `refiner_steps` ask no model at all: they are Heun's with
    d + refiner(x, d, t, conditions) for a slope, twice, and so need `refiner`, a `Refiner`, set on
    the scheduler. Under `Sampler` it is told what the denoiser was told last, once a branch, and
    guidance weighs what it says; a network is no part of a config, so a pipeline that is saved
    keeps `refiner_path`, by which to set it again.

    The step to level 0 is not evaluated at its end, which no model was trained at, but extrapolated
    from its last two slopes: N steps take N + heun_steps - 1 evaluations. Ask for `evaluate_last`
    to have it as published, with one more. With refiner steps it is N + heun_steps - refiner_steps.

    Args:
        heun_steps: first steps that are Heun's, at least 1; each beyond the first takes two
            evaluations, which a pipeline counts as steps of its own.
        refiner_steps: last steps by the refiner.
        refiner_path: where the refiner's weights lie, a path or a name; it is saved, and named
            where the refiner is missing, but nothing is loaded from it.
        evaluate_last: evaluate the end of the last step, at level 0, and correct it.
        model: config of the model's own scheduler, see `Integrator`.

    Raises:
        ValueError: a number of steps that is out of place, or refiner steps without a refiner.
    """

    refiner: Refiner | None = None
    told: Callable[[], Told] | None = None
    history = 2
    repeats = True
    movable = False

    @register_to_config
    def __init__(
        self,
        heun_steps: int = 1,
        refiner_steps: int = 0,
        evaluate_last: bool = False,
        refiner_path: str = "",
        **model: Any,
    ) -> None:
        if heun_steps < 1:
            raise ValueError(f"heun_steps must be 1 or more, got {heun_steps}: the first slope")
        if refiner_steps < 0 or (refiner_steps and evaluate_last):
            raise ValueError("refiner_steps must be 0 or more, and without evaluate_last if any")
        super().__init__(**model)

    def arranged(self, sigmas: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        heun, refined = self.config.heun_steps, self.config.refiner_steps
        count = len(timesteps)
        if heun + refined > count:
            raise ValueError(
                f"{heun} Heun and {refined} refiner steps do not fit in {count} steps; give more"
            )
        if refined and self.refiner is None:
            known = self.config.refiner_path
            place = f" that is kept at {known}" if known else ", a samplers.refiner.Refiner"
            raise ValueError(f"refiner_steps need a refiner: set scheduler.refiner to one{place}")
        asked = [k for i in range(heun) for k in (i, i + 1)]
        asked += range(heun + 1, count + 1)
        last = count - refined - (not refined and not self.config.evaluate_last)
        asked = [k for k in asked if k <= last]
        zero = 0.0 if self.flow else float(timesteps[-1])
        end = 1.0 * self.config.num_train_timesteps if self.config.invert_sigmas else zero
        times = torch.cat([timesteps, torch.full_like(timesteps[:1], end)])
        self._asked, self._grid = asked, [self._level(float(s)).g for s in sigmas.tolist()]
        self._times = times.tolist()
        return sigmas[[*asked, count]], times[torch.tensor(asked, device=times.device)]

    def _reset(self) -> None:
        super()._reset()
        self._slope: Tensor | None = None

    def advance(self, i: int, y: Tensor, velocity: Tensor, generator: Any) -> Tensor:
        place, grid = self._asked[i], self._grid
        slope, self._slope = self._slope, None
        if slope is not None:  # this is the predicted end of a step: put that step right
            y = y + (grid[place] - grid[place - 1]) / 2 * (velocity - slope)
        after = self._asked[i + 1] if i + 1 < len(self._asked) else None
        if after == place:  # evaluated again once it is right
            return y
        if after is not None:
            self._slope = velocity
            return y + (grid[after] - grid[place]) * velocity
        return self._finished(place, y, velocity)

    def _finished(self, place: int, y: Tensor, velocity: Tensor) -> Tensor:
        """From the last evaluation to level 0."""
        grid = self._grid
        if not self.config.refiner_steps:
            if place + 1 == len(grid):
                return y
            past = [p for k, p in enumerate(self._past) if not k or p[0] != self._past[0][0]]
            weights = integral([g for g, _ in past], grid[place], 0.0)
            for weight, (_, each) in zip(weights, past, strict=True):
                y = y + weight * each
            return y
        assert self.refiner is not None
        told = self.told() if self.told is not None else []
        for k in range(place, len(grid) - 1):
            step = grid[k + 1] - grid[k]
            first = refined(self.refiner, y, velocity, self._times[k], told)
            ahead = y + step * first
            velocity = refined(self.refiner, ahead, first, self._times[k + 1], told)
            y = y + step / 2 * (first + velocity)
        return y
