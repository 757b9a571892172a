"""What the tests of regions share: settings, choices of their own, what a scheduler sees."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from accel.method import Method
from accel.samplers import RegionAdaptive
from accel.samplers.regions.selection import Selection
from tests.tiny_pipelines import call, make

HALF = RegionAdaptive(ratio=0.5, start=0.2, dense=(0.6,))
PROMPTS = ("a red circle moving left on a dark background", "a blue square")


class Indices(Selection):
    """Chooses tokens in an order of its own: `order(S)` of all, or of those chosen."""

    order: Callable[[int], Tensor] = staticmethod(lambda count: torch.arange(count))
    everything = True

    def choose(self, score: Tensor, left_out: int) -> Tensor:
        chosen = super().choose(score, left_out)
        if self.everything:
            chosen = torch.arange(score.shape[1]).expand(len(score), -1)
        return chosen[:, self.order(chosen.shape[1])]


def run(
    name: str, scheduler: str | None, *methods: Method, **how: Any
) -> tuple[Tensor, DiffusionPipeline]:
    """The latents of a run with `methods` (`HALF` if none), and the pipeline."""
    pipe = make(name, scheduler)
    pipe.enable_acceleration(*(methods or (HALF,)))
    return call(pipe, name, **how), pipe


@contextlib.contextmanager
def stepped(pipe: DiffusionPipeline) -> Iterator[list[tuple[Any, Tensor, Tensor, Tensor]]]:
    """What the scheduler is given, and returns: (timesteps, predictions, samples, results)."""
    seen: list[tuple[Any, Tensor, Tensor, Tensor]] = []
    kind = type(pipe.scheduler)

    class Seen(kind):
        def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
            result = super().step(model_output, timestep, sample, **kwargs)
            seen.append((timestep, model_output.clone(), sample.clone(), result[0].clone()))
            return result

    pipe.scheduler = Seen.from_config(pipe.scheduler.config)
    yield seen
