"""Indicators: what is known of a step when its first block is reached."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from accel.family import Family

from .judge import Indicator
from .span import Entry


def own_indicator(family: Family) -> Literal["modulated", "embedding"]:
    """What the family's first blocks tell about their modulation."""
    return "modulated" if family.blocks[0].modulation else "embedding"


def modulated(entry: Entry) -> Tensor:
    """The input of the first attention of the block: normed, scaled and shifted, (B, S, D).

    Raises:
        ValueError: the family does not say how the block makes it.
    """
    if entry.spec.modulation is None:
        raise ValueError(
            f"how {type(entry.block).__name__} modulates its input is not known; set "
            f"indicator='embedding'"
        )
    kind, path, name = entry.spec.modulation
    norm, embedding = entry.block.get_submodule(path), entry.argument(name)
    if kind == "norm":
        value = norm(entry.hidden, emb=embedding)
        return value if isinstance(value, Tensor) else value[0]
    table: Tensor = entry.block.scale_shift_table  # type: ignore[assignment]
    rows = table.reshape(-1, table.shape[-1])
    shift, scale = (rows + embedding.reshape(len(embedding), -1, *rows.shape)).unbind(2)[:2]
    return norm(entry.hidden) * (1 + scale) + shift


def embedded(entry: Entry) -> Tensor:
    """The time embedding that the block is given, (B, ...).

    Raises:
        ValueError: the block takes none under a known name.
    """
    modulation = entry.spec.modulation
    value = entry.argument(modulation[2] if modulation else "temb")
    if not isinstance(value, torch.Tensor):
        raise ValueError(
            f"{type(entry.block).__name__} is given no time embedding by a known name; TeaCache "
            f"cannot judge this model"
        )
    return value.expand(len(entry.hidden), *value.shape[1:]).clone()


INDICATORS: dict[str, Indicator] = {"modulated": modulated, "embedding": embedded}
