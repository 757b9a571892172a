"""What the unconditional output differs by from the conditional one, in two frequency bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FIFTH = 5


@dataclass(frozen=True)
class Grid:
    """How height and width lie in an output.

    Attributes:
        shape: what the output is viewed as.
        axes: of height and width in it.
    """

    shape: tuple[int, ...]
    axes: tuple[int, int]


def grid_of(value: Tensor, arguments: Mapping[str, Any], remedy: str) -> Grid:
    """The grid of a denoiser's output.

    Args:
        value: (B, C, H, W), (B, C, F, H, W), (B, F, C, H, W), or packed tokens (B, S, D) of a
            denoiser that takes `num_frames`, `height` and `width`.
        arguments: of the denoiser, by name.
        remedy: what the error ends with.

    Raises:
        ValueError: packed tokens whose grid the denoiser is not told.
    """
    if value.ndim in (4, 5):
        return Grid(tuple(value.shape), (value.ndim - 2, value.ndim - 1))
    sizes = [arguments.get(name) for name in ("num_frames", "height", "width")]
    if value.ndim == 3 and all(isinstance(size, int) for size in sizes):
        frames, height, width = (int(size) for size in sizes if size is not None)
        if frames * height * width == value.shape[1]:
            return Grid((len(value), frames, height, width, value.shape[2]), (2, 3))
    raise ValueError(
        f"the denoiser's output is to be split into spatial frequencies, but a shape of "
        f"{tuple(value.shape)} does not tell its height and width; {remedy}"
    )


def low_pass(value: Tensor, grid: Grid) -> Tensor:
    """The frequencies of `value` inside a disc of radius min(H, W) // 5, per frame; float32."""
    view = value.float().view(grid.shape)
    height, width = (grid.shape[axis] for axis in grid.axes)
    kept = low_frequencies(height, width, value.device)
    kept = kept.reshape(*kept.shape, *[1] * (len(grid.shape) - 1 - grid.axes[1]))
    spectrum = torch.fft.rfft2(view, dim=grid.axes) * kept
    return torch.fft.irfft2(spectrum, s=(height, width), dim=grid.axes).reshape(value.shape)


def low_frequencies(height: int, width: int, device: Any) -> Tensor:
    """(H, W // 2 + 1) mask over `rfft2` frequencies: in the disc or not."""
    down = torch.fft.fftfreq(height, 1 / height, device=device)
    across = torch.fft.rfftfreq(width, 1 / width, device=device)
    return down[:, None] ** 2 + across**2 <= (min(height, width) // FIFTH) ** 2


def difference(uncond: Tensor, cond: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(uncond - cond, its low frequencies), both float32."""
    whole = uncond.float() - cond.float()
    return whole, low_pass(whole, grid)


def uncond_from(cond: Tensor, kept: tuple[Tensor, Tensor], low: float, high: float) -> Tensor:
    """`cond` plus the kept difference, its bands weighted by `low` and `high`; dtype of `cond`."""
    whole, slow = kept
    guess = cond.float() + high * whole
    return (guess + (low - high) * slow if low != high else guess).to(cond.dtype)
