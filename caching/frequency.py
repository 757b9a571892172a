"""Low and high spatial frequencies of tokens, over a square grid or along the token axis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.token_grid import Grid


def split(tokens: Tensor, grid: Grid | None, cutoff: float) -> tuple[Tensor, Tensor]:
    """`tokens` (B, S, D) as a sum of low and high frequencies, as FreqCa (2510.08669) does.

    By a 2-D cosine transform where the tokens are a square picture, else by a Fourier transform
    along the token axis. Computed in float32.

    Args:
        grid: frames, rows and columns of the tokens, if known.
        cutoff: the share of the highest frequency up to which frequencies are low.

    Returns:
        (low, high), each (B, S, D) in the dtype of `tokens`.
    """
    wide = tokens.float()
    frames, rows, columns = grid or (0, 0, 0)
    square = frames == 1 and rows == columns and rows * columns == tokens.shape[1]
    low = _low_cosine(wide, rows, cutoff) if square else _low_fourier(wide, cutoff)
    return low.to(tokens.dtype), (wide - low).to(tokens.dtype)


def _low_cosine(tokens: Tensor, side: int, cutoff: float) -> Tensor:
    """Frequencies (k, l) with sqrt(k^2 + l^2) at most `cutoff` of the largest."""
    radius = cutoff * math.hypot(side - 1, side - 1) + 1e-6
    count = min(int(radius) + 1, side)
    k = torch.arange(count, device=tokens.device)
    places = (torch.arange(side, device=tokens.device) + 0.5) * (math.pi / side)
    basis = torch.cos(k[:, None] * places) * math.sqrt(2 / side)
    basis[0] *= math.sqrt(0.5)
    picture = tokens.unflatten(1, (side, side))
    values = torch.einsum("ki,lj,bijd->bkld", basis, basis, picture)
    values *= (k[:, None] ** 2 + k**2 <= radius**2)[..., None]
    return torch.einsum("ki,lj,bkld->bijd", basis, basis, values).flatten(1, 2)


def _low_fourier(tokens: Tensor, cutoff: float) -> Tensor:
    """Frequencies up to `cutoff` of the largest along the token axis."""
    count = tokens.shape[1]
    values = torch.fft.rfft(tokens, dim=1)
    values[:, int(cutoff * (count // 2) + 1e-6) + 1 :] = 0
    return torch.fft.irfft(values, n=count, dim=1)
