"""The latents a denoiser is given: which of its channels they are, and where in space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def shared(latents: Tensor, output: Tensor, channels: int) -> tuple[Tensor, Tensor, int]:
    """The channels that the latents and the denoiser's output both have, and their axis.

    They come first in either: behind the latents there may be a mask and a picture, behind the
    output a variance.

    Raises:
        ValueError: they differ in more than their channels.
    """
    axis = channels if latents.ndim > 3 else latents.ndim - 1
    count = min(latents.shape[axis], output.shape[axis] if axis < output.ndim else 0)
    taken = latents.narrow(axis, 0, count), output.narrow(axis, 0, count) if count else output
    if taken[0].shape != taken[1].shape:
        raise ValueError(
            f"the denoiser makes {tuple(output.shape)} of latents {tuple(latents.shape)}; a method "
            f"that follows the latents needs both to be alike but for their channels"
        )
    return (*taken, axis)


def grid_of(called: Mapping[str, Any]) -> tuple[int, ...]:
    """Sizes of the grid on which the packed latents (B, S, C) of a denoiser call lie.

    Args:
        called: the arguments of the call by name, latents first.

    Raises:
        ValueError: no argument tells, or they tell of another number of tokens.
    """
    tokens = next(iter(called.values())).shape[1]
    sizes: tuple[int, ...] = ()
    positions, shapes = called.get("img_ids"), called.get("img_shapes")
    if all(isinstance(called.get(n), int) for n in ("num_frames", "height", "width")):
        sizes = (called["num_frames"], called["height"], called["width"])
    elif isinstance(positions, Tensor):
        rows = positions.reshape(-1, positions.shape[-1])[:tokens]
        sizes = tuple(int(n) + 1 for n in (rows.amax(0) - rows.amin(0)).tolist()[-2:])
    elif shapes:
        sizes = tuple(shapes[0][0] if isinstance(shapes[0], list) else shapes[0])
    if not sizes or math.prod(sizes) != tokens:
        raise ValueError(
            f"the {tokens} tokens of this denoiser's latents are on a grid that its arguments do "
            f"not tell ({sizes or 'no sizes'}); use another method"
        )
    return sizes
