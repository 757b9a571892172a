"""Ways to sample: plain, with a method of ours or with a peer, by one of several solvers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

import accel
from accel.method import Method
from accel.plan import describe
from benchmarks import peers

OWN = "own"
"""The solver a model ships with."""


@dataclass(frozen=True)
class TaylorSeer(peers.TaylorSeer):
    """diffusers' TaylorSeer, which can be told to compute the final step as well."""

    last: bool = False

    def install(self, pipe: Any, steps: int) -> None:
        def config(denoiser: torch.nn.Module) -> Any:
            found = self._config(denoiser)
            found.disable_cache_after_step = steps - 1 if self.last else None
            return found

        peers._each(pipe, config)

    def computed(self, steps: int) -> list[int]:
        return sorted({*super().computed(steps), *([steps - 1] if self.last else [])})


@dataclass(frozen=True)
class Setting:
    """One way to sample.

    Attributes:
        row: what it is called in tables, without its numbers.
        method: ours, a peer's, or None for the plain sampler.
        sampler: the solver: "own", or a name that `solver` knows.
        steps: of the solver.
        mark: tells two methods apart whose shown fields begin alike.
    """

    row: str
    method: Method | peers.Peer | None = None
    sampler: str = OWN
    steps: int = 50
    mark: str = ""

    @property
    def by(self) -> str:
        """Whose: "ours", "plain", or a peer's project."""
        if isinstance(self.method, peers.Peer):
            return self.method.project
        return "plain" if self.method is None else "ours"

    @property
    def alone(self) -> bool:
        """Whether samples of one batch would share decisions, and so must run one by one."""
        if isinstance(self.method, peers.CacheDiT):
            return self.method.mask is None
        if isinstance(self.method, peers.FirstBlockCache):
            return True
        return not getattr(self.method, "per_sample", True)

    def __str__(self) -> str:
        if self.method is None:
            return f"{self.steps} steps"
        if not isinstance(self.method, peers.Peer):
            told = describe(self.method, width=100, begun=True)
            return f"{told} {self.mark}" if self.mark else told
        shown = [
            f"{f.name}={_short(value)}"
            for f in fields(self.method)
            if (value := getattr(self.method, f.name)) != f.default
        ]
        return f"{type(self.method).__name__}({', '.join(shown)})"


def _short(value: Any) -> str:
    """A mask as digits, another long tuple by its length."""
    if isinstance(value, tuple) and set(value) <= {0, 1}:
        return "".join(map(str, value))
    return f"<{len(value)} values>" if isinstance(value, tuple) else repr(value)


def plain(sampler: str = OWN, steps: int = 50) -> Setting:
    """The plain sampler."""
    return Setting(f"{sampler} with as few steps", None, sampler, steps)


def solver(own: Any, name: str) -> Any:
    """A scheduler for the same model as `own`, the one that a pipeline ships with.

    Names: "own", "euler" (flow matching only), "unipc", "dpm++"; after a colon where the timesteps
    lie, e.g. "dpm++:trailing" or "own:trailing".

    Raises:
        ValueError: another name, or a solver that does not fit the model.
    """
    kind, _, spacing = name.partition(":")
    spaced = {"timestep_spacing": spacing} if spacing else {}
    flow = own.config.get("prediction_type") == "flow_prediction"
    if kind == OWN or (kind == "euler" and isinstance(own, FlowMatchEulerDiscreteScheduler)):
        return type(own).from_config(own.config, **spaced)
    if kind == "euler" and flow:
        return FlowMatchEulerDiscreteScheduler(shift=own.config.flow_shift)
    if kind not in ("unipc", "dpm++"):
        raise ValueError(f"unknown solver {name!r} for this model; known: own, euler, unipc, dpm++")
    found = UniPCMultistepScheduler if kind == "unipc" else DPMSolverMultistepScheduler
    if isinstance(own, FlowMatchEulerDiscreteScheduler):
        return found(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=own.config.shift
        )
    return found.from_config(own.config, **spaced)


@contextlib.contextmanager
def ready(pipe: Any, setting: Setting) -> Iterator[Any]:
    """`pipe` as `setting` wants it; afterwards it is as before.

    A peer works on a copy of the pipeline that shares its weights.
    """
    own = pipe.scheduler
    pipe.scheduler = solver(own, setting.sampler)
    try:
        if isinstance(setting.method, peers.Peer):
            with peers.enabled(pipe, setting.method, setting.steps) as other:
                yield other
        elif setting.method is not None:
            with accel.accelerated(pipe, setting.method):
                yield pipe
        else:
            yield pipe
    finally:
        pipe.scheduler = own
