"""Schedulers under which tokens may be held, and what it is that is held of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VARIANCE_PRESERVING = ("DDIMScheduler", "CogVideoXDDIMScheduler")
USABLE = ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler", *VARIANCE_PRESERVING)


def check_scheduler(scheduler: Any, method: str) -> None:
    """Raise ValueError unless `scheduler` is a deterministic one-step solver.

    A token that is left out moves on along its last guided prediction. A solver that fits a curve
    through several predictions would take the same one twice for a curve without slope, and, once
    the token is computed again, all the change since for that of a single step.
    """
    kinds = [kind.__name__ for kind in type(scheduler).__mro__]
    config = getattr(scheduler, "config", {})
    name = type(scheduler).__name__
    if not set(kinds) & set(USABLE) or "Multistep" in name:
        shift = config.get("flow_shift")
        given = "" if shift is None else f"(shift={shift})"
        raise ValueError(
            f"{method} holds the last guided prediction of tokens it leaves out, which is right "
            f"for one-step solvers only; {name} mixes predictions of several steps or adds noise. "
            f"Set pipe.scheduler to {' or '.join(USABLE[:3])}, for this model with "
            f"FlowMatchEulerDiscreteScheduler{given} if it is a flow"
        )
    if config.get("stochastic_sampling"):
        raise ValueError(
            f"{method} holds predictions between steps, and {name} with stochastic_sampling=True "
            f"draws new noise at each; set stochastic_sampling=False"
        )
    if "EulerDiscreteScheduler" in kinds and config.get("prediction_type") != "epsilon":
        raise ValueError(
            f"{method} holds predictions of noise under {name}, and this one predicts "
            f"{config.get('prediction_type')!r}; use DDIMScheduler"
        )


class Direction:
    """What stays the same while a one-step solver moves a token on: velocity of a flow, else noise.

    Variance-preserving models may predict something else, which changes along a straight path:
    with alpha^2 + sigma^2 = 1, eps = alpha v + sigma x, and eps = (x - alpha x0) / sigma.
    """

    def __init__(self, scheduler: Any) -> None:
        kinds = {kind.__name__ for kind in type(scheduler).__mro__}
        converts = bool(kinds & set(VARIANCE_PRESERVING))
        self._kind = scheduler.config.get("prediction_type", "epsilon") if converts else "epsilon"
        self._scheduler = scheduler

    def _levels(self, timestep: Any) -> tuple[Tensor, Tensor]:
        alphas = self._scheduler.alphas_cumprod
        at = torch.as_tensor(timestep).to(device=alphas.device, dtype=torch.long)
        square = alphas[at].float()
        return square.sqrt(), (1 - square).sqrt()

    def of(self, output: Tensor, sample: Tensor, timestep: Any) -> Tensor:
        """The direction, from the model's `output` for `sample` at `timestep`."""
        if self._kind == "epsilon":
            return output
        alpha, sigma = (level.to(output.device) for level in self._levels(timestep))
        if self._kind == "v_prediction":
            return (alpha * output.float() + sigma * sample.float()).to(output.dtype)
        return ((sample.float() - alpha * output.float()) / sigma).to(output.dtype)

    def back(self, direction: Tensor, sample: Tensor, timestep: Any) -> Tensor:
        """The output that a model which saw `direction` at `sample` would give."""
        if self._kind == "epsilon":
            return direction
        alpha, sigma = (level.to(direction.device) for level in self._levels(timestep))
        if self._kind == "v_prediction":
            value = (direction.float() - sigma * sample.float()) / alpha
        else:
            value = (sample.float() - sigma * direction.float()) / alpha
        return value.to(direction.dtype)
