"""The U-Net branch carrier of DeepCache: keep one hidden state, skip all that leads to it.

A U-Net of n levels hands 1 + sum(layers + downsampler) residuals across, in execution order.
Branch k runs the down path as far as the producer of residual k, and the up path from the layer
that reads it; everything between is skipped, and the module just before that layer stands in with
the hidden state of the last computed step. On SD 1.5 branch 0 runs 1 of 22 ResNets, branch 1 runs
3 of 22 (the "layer 0, block 0" of the paper), branch 2 runs 5.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from accel.memory import Kept

from .carriers import Carrier
from .unet_parts import layer


def residuals(unet: torch.nn.Module) -> list[tuple[int, int] | None]:
    """Producers of the residuals in order: None for `conv_in`, else (down block, layer).

    A layer number equal to the number of layers is the downsampler.
    """
    found: list[tuple[int, int] | None] = [None]
    for b, block in enumerate(unet.down_blocks):
        layers = len(block.resnets) + bool(getattr(block, "downsamplers", None))
        found += [(b, i) for i in range(layers)]
    return found


def branch_span(unet: torch.nn.Module, branch: int) -> list[str]:
    """Paths of the modules that branch `branch` skips, in execution order; the last one stands in.

    Raises:
        ValueError: the U-Net has no such branch, or none of its layers can be skipped.
    """
    producers = residuals(unet)
    if not 0 <= branch < len(producers):
        raise ValueError(
            f"branch must be from 0 to {len(producers) - 1} on this U-Net, got {branch}"
        )
    span: list[str] = []
    last = producers[branch]
    for b, block in enumerate(unet.down_blocks):
        path = f"down_blocks.{b}"
        if last is None or b > last[0]:
            span.append(path)
        elif b == last[0] and last[1] < len(block.resnets):
            for i in range(last[1] + 1, len(block.resnets)):
                span += layer(path, block, i)
            if getattr(block, "downsamplers", None):
                span += [f"{path}.downsamplers.{i}" for i in range(len(block.downsamplers))]
    if getattr(unet, "mid_block", None) is not None:
        span.append("mid_block")
    remaining = len(producers)
    for u, block in enumerate(unet.up_blocks):
        count, path = len(block.resnets), f"up_blocks.{u}"
        if remaining - count > branch:  # reads only residuals deeper than the branch
            span.append(path)
            remaining -= count
            continue
        for i in range(remaining - 1 - branch):
            span += layer(path, block, i)
        break
    if not span:
        raise ValueError(f"branch {branch} skips nothing on this U-Net, which has no mid block")
    return span


class UNetBranch(Carrier):
    """Hold the hidden state that enters the up path at `branch`."""

    def __init__(self, *args: Any, branch: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.branch = branch

    def attach(self, name: str, denoiser: torch.nn.Module) -> list[str]:
        unet = getattr(denoiser, "_orig_mod", denoiser)
        span = branch_span(unet, self.branch)
        self.gate(name, denoiser)
        for path in span:
            handler = self.stand_in if path == span[-1] else self.idle
            self.site.patches.call(
                unet.get_submodule(path),
                functools.partial(handler, path),
                f"{self.label} on {name}.{path}",
            )
        return span

    def outputs(self, denoiser: torch.nn.Module, skipped: list[str]) -> list[Kept]:
        return [Kept(skipped[-1])]
