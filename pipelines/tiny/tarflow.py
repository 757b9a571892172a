"""A small TarFlow: a normalizing flow over patches of pictures of shapes, trained in seconds.

It is here to prove samplers of causal flows on a model that has learned something.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .scenes import render, sample_scenes

SIZE, PATCH = 16, 4
"""Pixels of a picture's side, and of a patch's."""
NOISE = 0.1
"""Standard deviation of the noise that pictures are trained with: a flow needs a density."""


class Layer(nn.Module):
    """Causal self-attention and a feed-forward part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden states (B, n, W), and keys and values (2, B, H, past + n, W / H)."""
        shape = (*hidden.shape[:2], 3, self.heads, -1)
        query, *rest = self.qkv(self.norm(hidden)).reshape(shape).permute(2, 0, 3, 1, 4)
        kept = torch.stack(rest) if past is None else torch.cat([past, torch.stack(rest)], 3)
        rows, columns = query.shape[2], kept.shape[3]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=hidden.device)
        mask = mask.tril(columns - rows)
        mixed = nn.functional.scaled_dot_product_attention(query, kept[0], kept[1], attn_mask=mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        return hidden + self.feed(hidden), kept


class TarBlock(nn.Module):
    """An affine flow whose scale and shift at a position come from the positions before.

    Args:
        backward: the positions are taken from the last to the first.
    """

    def __init__(self, channels: int, tokens: int, width: int, layers: int, backward: bool) -> None:
        super().__init__()
        self.backward = backward
        self.embed, self.place = (
            nn.Linear(channels, width),
            nn.Parameter(torch.zeros(tokens, width)),
        )
        nn.init.normal_(self.place, std=0.02)
        self.layers = nn.ModuleList(Layer(width, 4) for _ in range(layers))
        self.head = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def extend(
        self, before: Tensor | None, tokens: Tensor, cache: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """Scale and shift of `tokens`; see `accel.samplers.gs_jacobi.CausalBlock`."""
        seen = tokens[:, :-1] if before is None else torch.cat([before, tokens[:, :-1]], 1)
        nothing = torch.zeros_like(tokens[:, :1])
        first = 0 if cache is None else cache[0].shape[3]
        if not seen.shape[1]:
            return nothing, nothing, None
        hidden = self.embed(seen) + self.place[first : first + seen.shape[1]]
        kept = []
        for i, layer in enumerate(self.layers):
            hidden, each = layer(hidden, None if cache is None else cache[i])
            kept.append(each)
        scale, shift = self.head(hidden).chunk(2, -1)
        scale = 2 * torch.tanh(scale / 2)
        if before is None:
            scale, shift = torch.cat([nothing, scale], 1), torch.cat([nothing, shift], 1)
        return scale, shift, kept

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, T, C) in the block's own order, and the log-determinant (B,) per value."""
        scale, shift, _ = self.extend(None, x, None)
        return (x - shift) * (-scale).exp(), -scale.mean((1, 2))


class TarFlow(nn.Module):
    """Blocks that take the positions in turn from either end."""

    def __init__(self, blocks: int = 4, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.channels, self.tokens = 3 * PATCH**2, (SIZE // PATCH) ** 2
        self.blocks = nn.ModuleList(
            TarBlock(self.channels, self.tokens, width, layers, bool(i % 2)) for i in range(blocks)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Noise z and log-determinant (B,) of tokens x (B, T, C)."""
        total = torch.zeros(len(x), device=x.device)
        for block in self.blocks:
            x, log_determinant = block(x.flip(1) if block.backward else x)
            x = x.flip(1) if block.backward else x
            total = total + log_determinant
        return x, total

    def loss(self, x: Tensor) -> Tensor:
        """Negative log-likelihood per value, in nats, without its constant."""
        z, log_determinant = self(x)
        return 0.5 * z.square().mean() - log_determinant.mean()


def pictures(count: int, seed: int) -> Tensor:
    """(count, T, C) tokens of noisy pictures in about [-1, 1]."""
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [render(s, frames=1, size=SIZE) for s in sample_scenes(rng, count, moving=False)]
    )
    pixels = torch.from_numpy(drawn).float()
    pixels = pixels if pixels.shape[1] == 3 else pixels.movedim(-1, 1)
    pixels = (
        pixels * 2
        - 1
        + NOISE * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    )
    return nn.functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).contiguous()


def picture(tokens: Tensor) -> Tensor:
    """(B, 3, SIZE, SIZE) in [0, 1] of tokens (B, T, C)."""
    pixels = nn.functional.fold(tokens.transpose(1, 2), SIZE, PATCH, stride=PATCH)
    return (pixels / 2 + 0.5).clamp(0, 1)


def trained(steps: int = 150, batch: int = 32, rate: float = 2e-3, seed: int = 0) -> TarFlow:
    """A flow trained on the spot."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TarFlow()
    data = pictures(512, seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data), (batch,), generator=generator)
        loss = model.loss(data[rows])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval().requires_grad_(False)
