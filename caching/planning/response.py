"""A scheduler as a linear map: from the first state and all model outputs to every state."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

OTHERS = "use a deterministic scheduler: DDIM, DPM-Solver++ (dpmsolver++), UniPC or flow Euler"


@dataclass(frozen=True)
class Response:
    """x_i = start[i] x_0 + sum_{j < i} outputs[i, j] v_j for states x_0 … x_N, outputs v_0 ….

    Attributes:
        start: (N + 1,) coefficients of the first state.
        outputs: (N + 1, N) coefficients of the outputs; zero for j >= i.
    """

    start: np.ndarray
    outputs: np.ndarray

    @property
    def steps(self) -> int:
        return self.outputs.shape[1]

    def decay(self, i: int) -> float:
        """What x_i counts for in x_{i+1}."""
        return float(self.start[i + 1] / self.start[i])

    def increments(self, i: int) -> np.ndarray:
        """(N,) what each output adds on the way from x_i to x_{i+1}."""
        return self.outputs[i + 1] - self.decay(i) * self.outputs[i]


def response(scheduler: Any, total: int) -> Response:
    """The response of `scheduler` over its last `total` timesteps, from a copy of it.

    One run over a batch of unit impulses: the first state, and each output, in a sample of its own.

    Raises:
        ValueError: the scheduler is random or not linear, so that no plan can stand for it.
    """
    wanted = ["model_output", "timestep", "sample"]
    if list(inspect.signature(type(scheduler).step).parameters)[1:4] != wanted:
        raise ValueError(
            f"{type(scheduler).__name__}.step wants more than an output, a timestep and a sample, "
            f"so that its steps cannot be planned; {OTHERS}"
        )
    own = copy.deepcopy(scheduler)
    own.timesteps = own.timesteps.cpu()  # what is read from it must not wait for an accelerator
    if hasattr(own, "is_scale_input_called"):
        own.is_scale_input_called = True  # or Euler warns: a model would be given scaled inputs
    timesteps = own.timesteps[len(own.timesteps) - total :]
    inputs = torch.zeros(total + 3, total + 1, dtype=torch.float64)
    inputs[: total + 1] = torch.eye(total + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(total + 1, generator=generator, dtype=torch.float64)
    inputs[-1] = probe
    states = _run(own, timesteps, inputs)
    unit, nothing, mixed = states[:, : total + 1], states[:, -2], states[:, -1]
    expected = unit @ probe
    scale = expected.abs().max()
    if nothing.abs().max() > 1e-6 or (mixed - expected).abs().max() > 1e-4 * scale:
        raise ValueError(
            f"{type(scheduler).__name__} as set adds noise, clips or thresholds, so that its steps "
            f"are no linear map and cannot be planned; {OTHERS}"
        )
    found = unit.numpy()
    return Response(found[:, 0], found[:, 1:])


def check_arguments(scheduler: Any, given: Mapping[str, Any]) -> None:
    """Refuse keyword arguments of a step with which it is another map than its response.

    Raises:
        ValueError: one of them is set (eta, churn, a noise level for every token).
    """
    known = inspect.signature(type(scheduler).step).parameters
    for name, value in given.items():
        usual = known[name].default if name in known else None
        if name in ("generator", "return_dict") or value is None or value is usual:
            continue
        if isinstance(value, torch.Tensor) or value != usual:
            told = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
            raise ValueError(
                f"{type(scheduler).__name__}.step was given {name}={told}, with which a plan "
                f"cannot stand for it; leave it at {usual!r}, or disable acceleration"
            )


def _run(scheduler: Any, timesteps: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """States (N + 1, R) of R runs at once; inputs (R, 1 + N): first state, then each output."""
    rows = len(inputs)
    sample = inputs[:, 0].reshape(rows, 1, 1, 1)
    states = [sample.flatten()]
    for i, t in enumerate(timesteps):
        output = inputs[:, 1 + i].reshape(rows, 1, 1, 1)
        sample = scheduler.step(output, t, sample, return_dict=False)[0].double()
        states.append(sample.flatten())
    return torch.stack(states)
