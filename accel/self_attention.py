"""Which modules of a denoiser are self-attention, in the order they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .family import Family

ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


@dataclass(frozen=True)
class Layer:
    """One self-attention module.

    Attributes:
        path: attribute path in the denoiser.
        number: its place among the self-attention modules, from 0.
        kind: "self" (all tokens at once), "spatial" (within a frame) or "temporal" (across them).
        module: the attention module.
        block: the block it lies in.
    """

    path: str
    number: int
    kind: str
    module: torch.nn.Module
    block: torch.nn.Module

    @property
    def processor(self) -> Any:
        return getattr(self.module, "processor", None)


def self_attention(family: Family, denoiser: torch.nn.Module) -> list[Layer]:
    """The self-attention of `denoiser`; empty where its family does not tell.

    Blocks say it as data; of a U-Net, modules that attend to what they are given.
    """
    root = getattr(denoiser, "_orig_mod", denoiser)
    found: list[tuple[str, str, torch.nn.Module, torch.nn.Module]] = []
    for path, block, spec in family.flat_blocks(denoiser):
        for part, kind in spec.attention.items():
            if kind != "cross":
                found.append((f"{path}.{part}", kind, block.get_submodule(part), block))
    if family.kind == "unet":
        found += _of_unet(root)
    return [Layer(path, i, kind, *modules) for i, (path, kind, *modules) in enumerate(found)]


def _of_unet(root: torch.nn.Module) -> list[tuple[str, str, torch.nn.Module, torch.nn.Module]]:
    several = hasattr(root, "mid_block") and any(
        "motion_modules" in n for n, _ in root.named_modules()
    )
    found = []
    for path, module in root.named_modules():
        parent, _, name = path.rpartition(".")
        if name not in ("attn1", "attn2") or getattr(module, "is_cross_attention", True):
            continue
        temporal = "motion_modules" in path or "temporal_transformer_blocks" in path
        kind = "temporal" if temporal else "spatial" if several else "self"
        found.append((path, kind, module, root.get_submodule(parent)))
    return sorted(found, key=lambda f: ORDER.get(f[0].split(".")[0], 0))
