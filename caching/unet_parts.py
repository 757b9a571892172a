"""What a U-Net is made of: blocks (stages), layers and units, in the order they run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

Granularity = Literal["block", "layer", "unit"]
LAYER_PARTS = ("resnets", "attentions", "motion_modules")
UNITS = ("attn1", "attn2", "ff", "ff_in")


def blocks(unet: torch.nn.Module) -> list[tuple[str, int]]:
    """Path and level of every down, mid and up block; level 0 is at full resolution."""
    downs, ups = len(unet.down_blocks), len(unet.up_blocks)
    found = [(f"down_blocks.{i}", i) for i in range(downs)]
    if getattr(unet, "mid_block", None) is not None:
        found.append(("mid_block", downs - 1))
    return found + [(f"up_blocks.{i}", ups - 1 - i) for i in range(ups)]


def layer(path: str, block: torch.nn.Module, i: int) -> list[str]:
    """Paths of layer `i` of a down or up block: a ResNet and what follows it."""
    parts = [p for p in LAYER_PARTS if getattr(block, p, None) is not None]
    return [f"{path}.{p}.{i}" for p in parts if i < len(getattr(block, p))]


def layers(unet: torch.nn.Module) -> Iterator[tuple[str, list[str], int]]:
    """Name (the path of its ResNet), paths in the order they run, and level of every layer.

    In the middle block an attention comes before its ResNet.
    """
    for path, level in blocks(unet):
        block = unet.get_submodule(path)
        for i in range(len(block.resnets)):
            name = f"{path}.resnets.{i}"
            own = layer(path, block, i)
            if path == "mid_block":
                own = [*layer(path, block, i - 1)[1:], name] if i else [name]
            yield name, own, level


def units(unet: torch.nn.Module) -> Iterator[tuple[str, int]]:
    """Path and level of every ResNet, attention and feed-forward module."""
    for _, paths, level in layers(unet):
        for path in paths:
            module = unet.get_submodule(path)
            inner = [n for n, _ in module.named_modules() if n.rpartition(".")[2] in UNITS]
            found = [f"{path}.{n}" for n in inner]
            yield from ((p, level) for p in (found or [path]))


def groups(unet: torch.nn.Module, granularity: Granularity) -> list[tuple[str, list[str], int]]:
    """Name, paths in the order they run (the last is what others read) and level of each part."""
    if granularity == "layer":
        return list(layers(unet))
    found = blocks(unet) if granularity == "block" else units(unet)
    return [(path, [path], level) for path, level in found]
