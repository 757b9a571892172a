"""Attention modules of a transformer by kind, and where the feed-forward part ends."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from accel.family import Blocks, Family

KINDS = ("spatial", "temporal", "self", "cross")


def kinds_of(family: Family) -> list[str]:
    """The kinds of attention that a family's blocks have."""
    found = {kind for blocks in family.blocks for kind in blocks.attention.values()}
    return [kind for kind in KINDS if kind in found]


def attention_modules(
    family: Family, denoiser: torch.nn.Module
) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """Path in the denoiser, kind and module of every attention, in the order they run."""
    for path, block, spec in family.flat_blocks(denoiser):
        for part, kind in spec.attention.items():
            yield f"{path}.{part}", kind, block.get_submodule(part)


def feed_forward_parts(spec: Blocks) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is not attention in a block: (parts whose output is kept, parts that only feed them).

    Where attention and feed-forward meet in one last projection (the single blocks of Flux), the
    feed-forward part ends before it.
    """
    if any(part in spec.idle for part in spec.attention):
        rest = tuple(part for part in spec.idle if part not in spec.attention)
        return rest[-1:], rest[:-1]
    return tuple(part for part in spec.modules if part not in spec.attention), ()
