"""Where a picture or a video has edges."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, conv2d, pad

from .layouts import Grid

SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def decoded(vae: Any, frames: Tensor, still: bool) -> Tensor:
    """Pictures (N, 3, T, H, W) of latents (N, C, F, h, w), as the pipelines decode them.

    Args:
        still: the VAE takes pictures (N, C, h, w).
    """
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        mean, std = (frames.new_tensor(each).view(1, -1, 1, 1, 1) for each in (mean, std))
        frames = frames * std + mean
    else:
        shift = config.get("shift_factor") or 0
        frames = frames / (config.get("scaling_factor") or 1) + shift
    given, known = frames[:, :, 0] if still else frames, set(vars(vae))
    with torch.no_grad():
        found = vae.decode(given.to(vae.dtype), return_dict=False)[0]
    for name in set(vars(vae)) - known:  # Wan's leaves the state of its chunks behind
        delattr(vae, name)
    return found[:, :, None] if still else found


def edges(frames: Tensor, grid: Grid) -> Tensor:
    """Mean length of the gradient (F, rows, columns) of frames (N, C, T, H, W), over samples.

    The first frame is the first of the grid, and the others are shared out evenly, as causal VAEs
    do.
    """
    count, *size = grid
    length = gradient(frames.float().transpose(1, 2).flatten(0, 1))
    score = length.unflatten(0, (len(frames), -1)).mean(dim=(0, 2))
    score = adaptive_avg_pool2d(score[:, None], tuple(size))[:, 0]
    if len(score) == count:
        return score
    ratio = (len(score) - 1) / max(count - 1, 1)
    place = (torch.arange(len(score), device=score.device) / ratio).ceil().long()
    place = place.clamp(max=count - 1)
    sums = score.new_zeros(count, *size).index_add_(0, place, score)
    return sums / place.bincount(minlength=count).clamp(min=1)[:, None, None]


def gradient(picture: Tensor) -> Tensor:
    """Length of the gradient (N, 1, H, W) of a picture's mean over channels, by Sobel's filter."""
    across = torch.tensor(SOBEL, device=picture.device)[None, None]
    grey = pad(picture.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return torch.hypot(conv2d(grey, across), conv2d(grey, across.transpose(2, 3)))
