"""Positions of tokens between those of a grid, told to models that count tokens themselves."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor

TOLD = {"wan": "rope", "hunyuan_video": "rope", "sd3": "pos_embed"}
"""Family -> the part of its denoiser that counts tokens."""


def given(family: str, module: Any, latents: Tensor, places: Tensor, size: tuple[int, int]) -> Any:
    """What `module` returns about `latents` whose tokens lie at `places`.

    Args:
        places: frame, row and column (k, 3) of every token, whole or halves.
        size: rows and columns of the grid on which they are counted.
    """
    places = places.to(latents.device)
    if family == "wan":
        return _turned(module, places)
    if family == "hunyuan_video":
        parts = [
            get_1d_rotary_pos_embed(dim, along, module.theta, use_real=True)
            for dim, along in zip(module.rope_dim, places.unbind(1), strict=True)
        ]
        return tuple(torch.cat(each, dim=1) for each in zip(*parts, strict=True))
    tokens = module.proj(latents).flatten(2).transpose(1, 2)
    return (tokens + _between(module, places[:, 1:], size)).to(tokens.dtype)


def _turned(module: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (1, k, 1, D) of Wan's table, turned on by what is left of a step."""
    widths = [module.t_dim, module.h_dim, module.w_dim]
    tables = zip(module.freqs_cos.split(widths, 1), module.freqs_sin.split(widths, 1), strict=True)
    found = []
    for along, (cos, sin) in zip(places.unbind(1), tables, strict=True):
        whole = along.floor()
        turn = torch.atan2(sin[1], cos[1]) * (along - whole)[:, None].to(cos.dtype)
        c, s = cos[whole.long()], sin[whole.long()]
        found.append((c * turn.cos() - s * turn.sin(), s * turn.cos() + c * turn.sin()))
    cosines, sines = (torch.cat(each, dim=1)[None, :, None] for each in zip(*found, strict=True))
    return cosines, sines


def _between(module: Any, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows (k, D) of SD3's table, linear between its entries, of a grid in its middle."""
    side = module.pos_embed_max_size
    table = module.pos_embed.view(side, side, -1)
    middle = torch.tensor([(side - n) // 2 for n in size], device=places.device)
    at = places + middle
    low = at.floor().long()
    high = (low + 1).clamp(max=side - 1)
    (y, x), ((y0, x0), (y1, x1)) = (at - low).to(table).unbind(1), (low.T, high.T)
    upper = torch.lerp(table[y0, x0], table[y0, x1], x[:, None])
    return torch.lerp(upper, torch.lerp(table[y1, x0], table[y1, x1], x[:, None]), y[:, None])
