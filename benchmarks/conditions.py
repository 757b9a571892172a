"""What a plan was not made for: other guidance, size, step counts, and a LoRA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.shapes import Model

RANK, SHARE = 4, 0.05
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Condition:
    """A way in which runs differ from those a plan was made on.

    Attributes:
        guidance, size: factors of what the model is called with.
        lora: share of every attention projection's norm that a random low-rank change has.
        steps: of a run, where they are others.
    """

    name: str
    guidance: float = 1.0
    size: int = 1
    lora: float = 0.0
    steps: int | None = None


CONDITIONS = (
    Condition("half the guidance", guidance=0.5),
    Condition("1.5 times the guidance", guidance=1.5),
    Condition("twice the resolution", size=2),
    Condition("a random LoRA", lora=SHARE),
    Condition("40 steps", steps=40),
    Condition("75 steps", steps=75),
)


@contextlib.contextmanager
def changed(model: Model, condition: Condition) -> Iterator[Model]:
    """`model` under a condition; afterwards its weights are as before."""
    options = dict(model.options)
    options["guidance_scale"] = options["guidance_scale"] * condition.guidance
    for side in ("height", "width"):
        options[side] = options[side] * condition.size
    with adapted(model.denoiser, condition.lora):
        yield Model(model.name, model.pipe, model.folder, options)


@contextlib.contextmanager
def adapted(denoiser: torch.nn.Module, share: float, rank: int = RANK) -> Iterator[None]:
    """Add a random change of rank `rank` to every attention projection, as a merged LoRA does.

    Args:
        share: Frobenius norm of the change, of the weight's; 0 changes nothing.
    """
    generator, kept = torch.Generator().manual_seed(0), []
    for name, parameter in denoiser.named_parameters() if share else ():
        if not name.removesuffix(".weight").endswith(PROJECTIONS) or parameter.ndim != 2:
            continue
        rows, columns = parameter.shape
        up, down = (torch.randn(size, rank, generator=generator) for size in (rows, columns))
        change = (up @ down.T).to(parameter)
        kept.append((parameter, parameter.detach().clone()))
        parameter.data.add_(change, alpha=float(share * parameter.norm() / change.norm()))
    try:
        yield
    finally:
        for parameter, before in kept:
            parameter.data.copy_(before)
