"""What tests see of a pipeline by means of their own, and never by a method's report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from accel.caching import TaylorSeer
from accel.method import Method, Site
from accel.patch import Scope, Slot, active
from accel.step import Step
from tests.tiny_pipelines import call, make

HALF = TaylorSeer(interval=2, order=1, warmup=2)
"""Skips whole denoiser calls: of 5 steps it computes 0, 1 and 3."""


@dataclass(frozen=True)
class Watch(Method):
    """Changes nothing; keeps the step and the denoiser of every call."""

    seen: list[tuple[str, Step]] = field(default_factory=list)
    level = "step"

    def install(self, site: Site) -> None:
        for name, module in site.denoisers.items():
            handler = functools.partial(self._note, site, name)
            site.patches.call(module, handler, f"Watch on {name}")

    def expect(self, site: Site, steps: int) -> str:
        return "watches"

    def _note(self, site: Site, name: str, call: Callable, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((name, site.clock.step))
        return call(*args, **kwargs)

    @property
    def steps(self) -> list[Step]:
        return [step for _, step in self.seen]

    @property
    def indices(self) -> list[int]:
        return [step.index for step in self.steps]

    @property
    def branches(self) -> list[str]:
        return list(dict.fromkeys(step.branch for step in self.steps))

    @property
    def totals(self) -> set[int]:
        return {step.total for step in self.steps}

    @property
    def sigmas(self) -> list[float | None]:
        """One a step, in order."""
        return list({step.index: step.sigma for step in self.steps}.values())


def watched(name: str, scheduler: str | None = None, **how: Any) -> Watch:
    """Runs a fresh pipeline under a `Watch`, which must not change what it makes."""
    watch, pipe = Watch(), make(name, scheduler)
    pipe.enable_acceleration(watch)
    assert torch.equal(call(pipe, name, **how), plain(name, scheduler, **how))
    return watch


@functools.cache
def plain(name: str, scheduler: str | None = None, **how: Any) -> torch.Tensor:
    """What an untouched pipeline makes."""
    return call(make(name, scheduler), name, **how)


@functools.cache
def skipped(name: str, scheduler: str | None = None, **how: Any) -> torch.Tensor:
    """What a fresh pipeline makes under `HALF`."""
    pipe = make(name, scheduler)
    pipe.enable_acceleration(HALF)
    latents = call(pipe, name, **how)
    assert not torch.equal(latents, plain(name, scheduler, **how))
    return latents


@contextmanager
def computed(*modules: torch.nn.Module) -> Iterator[list[str]]:
    """Class names of the modules whose `forward` really runs, in order."""
    seen: list[str] = []
    hooks = [
        m.register_forward_hook(lambda m, a, o: seen.append(type(m).__name__)) for m in modules
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def footprint(pipe: Any) -> dict[str, Any]:
    """Type and attribute names of the pipeline, its parts and every module in them."""
    found = {"": (type(pipe), sorted(vars(pipe)))}
    for key, part in pipe.components.items():
        named = part.named_modules() if isinstance(part, torch.nn.Module) else [("", part)]
        for name, module in named:
            if hasattr(module, "__dict__"):
                found[f"{key}.{name}"] = (type(module), sorted(vars(module)))
    return found


def handlers(pipe):
    """How many handlers wait in the slots of the pipeline's modules, scheduler and itself."""
    owners = [pipe, pipe.scheduler]
    for part in pipe.components.values():
        owners += part.modules() if isinstance(part, torch.nn.Module) else []
    slots = {slot for o in owners for name in vars(o) if (slot := Slot.of(o, name)) is not None}
    return len(slots), sum(len(c.handlers) for slot in slots for c in slot.chains.values())


class Running:
    """The extent of a run, for tests that have no pipeline."""

    def __init__(self, key):
        self.scope = Scope(key, active.get())

    def __enter__(self):
        active.set(self.scope)
        return self.scope

    def __exit__(self, *exception):
        self.scope.live = False
        active.set(self.scope.outer)
