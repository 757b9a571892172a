"""Runs of the tiny pipelines that count work themselves, kept for the session."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from accel import recorder
from accel.method import Method
from accel.report import Report
from accel.work import count_flops
from tests.tiny_pipelines import call, make

DENOISERS = ("transformer", "transformer_2", "unet")
SDPA = (
    torch.nn.functional.scaled_dot_product_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,  # of parts of the tokens
)
LEAVES = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True)
class Result:
    """`flops` of the denoisers, counted by hooks of this file; `shape` is what vars() hold."""

    latents: torch.Tensor
    flops: int
    shape: dict[str, tuple[type, frozenset[str]]]
    report: Report | None = None


def denoisers(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    return [module for name in DENOISERS if (module := getattr(pipe, name, None)) is not None]


def anatomy(pipe: DiffusionPipeline) -> dict[str, tuple[type, frozenset[str]]]:
    """Type and attributes of the pipeline, its scheduler, and every module in it."""
    parts: dict[str, Any] = {"": pipe, "scheduler": pipe.scheduler}
    for component, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            parts |= {f"{component}.{path}": m for path, m in module.named_modules()}
    return {path: (type(part), frozenset(vars(part))) for path, part in parts.items()}


class Attending(TorchFunctionMode):
    """Counts attention as it is computed at last, after whatever a method has made of it."""

    def __init__(self, flops: list[int], depth: list[int]) -> None:
        super().__init__()
        self.flops, self.depth = flops, depth

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in SDPA and self.depth[0]:
            names = ("query", "key", "value")
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            query, key, value = (given[name] for name in names)
            widths = query.shape[-1] + value.shape[-1]
            self.flops.append(2 * query[..., 0].numel() * key.shape[-2] * widths)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(pipe: DiffusionPipeline) -> Iterator[list[int]]:
    """A list that grows by the FLOPs of each linear, convolution and attention of the denoisers."""
    flops: list[int] = []
    depth = [0]

    def leaf(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        flops.append(2 * output.numel() * module.weight[0].numel())

    hooks = []
    for module in denoisers(pipe):
        hooks.append(module.register_forward_pre_hook(lambda *_: depth.append(depth.pop() + 1)))
        hooks.append(module.register_forward_hook(lambda *_: depth.append(depth.pop() - 1)))
        leaves = [m for m in module.modules() if isinstance(m, LEAVES)]
        hooks += [m.register_forward_hook(leaf) for m in leaves]
    try:
        with Attending(flops, depth):
            yield flops
    finally:
        for hook in hooks:
            hook.remove()


class Reads(TorchDispatchMode):
    """Counts what waits for an accelerator: values read to the host, shapes that depend on data."""

    WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in self.WAITING
        return func(*args, **(kwargs or {}))


def reads(pipe: DiffusionPipeline, name: str, steps: int) -> int:
    """Reads in a run of `steps` steps."""
    with Reads() as counted:
        call(pipe, name, steps=steps)
    return counted.count


@functools.cache
def plain(name: str, **arguments: Any) -> Result:
    """A run of a fresh plain pipeline."""
    pipe = make(name)
    with counted(pipe) as flops:
        latents = call(pipe, name, **arguments)
    return Result(latents, sum(flops), anatomy(pipe))


@functools.cache
def clean(method: Method, name: str, **arguments: Any) -> Result:
    """The first run of a fresh pipeline with `method` enabled."""
    pipe = make(name)
    pipe.enable_acceleration(method)
    with counted(pipe) as flops:
        latents = call(pipe, name, **arguments)
    with pytest.MonkeyPatch.context() as patch:
        if not arguments:  # once for every method: what it patches must not change the count
            patch.setattr(recorder, "count_flops", count_flops)
        report = pipe.acceleration.report()
    return Result(latents, sum(flops), anatomy(pipe), report)


class Held(tuple):
    """What a scheduler returns, as a tuple and as an object."""

    prev_sample = property(operator.itemgetter(0))


@functools.cache
def weighed(name: str, method: Method | None = None) -> int:
    """Parameters of every module of the denoisers that ran, for models that cannot be traced."""
    pipe, ran = make(name), [0]

    def weigh(module: torch.nn.Module, *_: Any) -> None:
        ran[0] += sum(p.numel() for p in module.parameters(recurse=False))

    for module in denoisers(pipe):
        for part in module.modules():
            part.register_forward_hook(weigh)
    if method is not None:
        pipe.enable_acceleration(method)
    call(pipe, name)
    return ran[0]


def frozen(pipe: DiffusionPipeline) -> list[torch.Tensor]:
    """Make every step of `pipe` see the same input; returns the list of its (guided) outputs."""
    outputs: list[torch.Tensor] = []
    kind = type(pipe.scheduler)

    class Frozen(kind):
        @functools.wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.timesteps = self.timesteps[:1].repeat(len(self.timesteps))

        def scale_model_input(self, sample: torch.Tensor, *args: Any) -> torch.Tensor:
            return sample

        @functools.wraps(kind.step)
        def step(self, model_output: torch.Tensor, t: Any, sample: torch.Tensor, **kwargs: Any):
            if self is pipe.scheduler:  # a copy may be asked what it would do
                outputs.append(model_output.clone())
            return Held((sample,))

    pipe.scheduler = Frozen.from_config(pipe.scheduler.config)
    return outputs


def spoiling(pipe: DiffusionPipeline) -> None:
    """Make the scheduler of `pipe` overwrite the denoiser's output once it has used it."""
    kind = type(pipe.scheduler)

    class Spoiling(kind):
        @functools.wraps(kind.step)
        def step(self, model_output: torch.Tensor, *args: Any, **kwargs: Any):
            result = super().step(model_output.clone(), *args, **kwargs)
            model_output.fill_(torch.nan)
            return result

    pipe.scheduler = Spoiling.from_config(pipe.scheduler.config)
