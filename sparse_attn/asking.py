"""Which kernel a method will use, asked when it is enabled rather than deep in the first run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from accel.family import Family
from accel.method import Site
from accel.self_attention import Layer, self_attention
from accel.token_grid import TokenGrid

from .kernels import KERNELS
from .kernels.choice import choose
from .layout import BlockLayout, uniform
from .pattern import Pattern, Place

if TYPE_CHECKING:
    from .method import SparseAttention

VIDEOS = ((4, 16, 16), (12, 24, 24), (24, 32, 32))
"""Frames, rows and columns that patterns are tried on: divisible by common blocks and tiles."""
TEXT = 77
"""Tokens of text beside them; no multiple of a block, as they seldom are."""
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ask(settings: SparseAttention, site: Site) -> tuple[str, str]:
    """The kernel for the first denoiser, and why it.

    A kernel given by name is asked about tokens that suit it as well as any of this pattern do, so
    that it is only refused here if it could never be used; "auto" about some with text.

    Raises:
        ValueError: no denoiser, or not all of them, can be computed by the kernel.
    """
    answers = []
    for denoiser in site.denoisers.values():
        layers = self_attention(site.family, denoiser)
        q = query(site, denoiser, layers)
        text = TEXT if settings.kernel == "auto" and _joint(site.family) else 0
        layout = usual(settings.pattern, site.family, q, len(layers), text)
        name, _, why = choose(settings.kernel, KERNELS, q, layout, dense=True)
        answers.append((name, why))
    return answers[0]


def query(site: Site, denoiser: torch.nn.Module, layers: list[Layer]) -> Tensor:
    """(1, 1, H, D) zeros of the type, on the device and with the heads that attention will have."""
    parameter = next(denoiser.parameters())
    device = getattr(site.pipe, "_execution_device", None) or parameter.device
    if device.type == "meta":  # weights that are not there yet may come anywhere
        device = torch.device("cpu")
    # weights that are kept quantised are computed with in bfloat16
    dtype = parameter.dtype if parameter.dtype in TYPES else torch.bfloat16
    heads, size = 1, 64
    for module in (layer.module for layer in layers):
        width = getattr(getattr(module, "to_q", None), "out_features", None)
        if width is not None and hasattr(module, "heads"):
            heads, size = module.heads, width // module.heads
            break
    return torch.zeros(1, 1, heads, size, dtype=dtype, device=device)


@torch.no_grad()
def usual(pattern: Pattern, family: Family, q: Tensor, layers: int, text: int) -> BlockLayout:
    """A layout such as `pattern` makes; of plain blocks where it left nothing out of any video."""
    quick = getattr(pattern, "quick", None)
    pattern = pattern if quick is None else quick()
    batch, _, heads, size = q.shape
    whole = None
    for frames, rows, columns in VIDEOS:
        frames = 1 if family.kind == "unet" else frames
        first = text if family.text == "first" else 0
        grid = TokenGrid(frames, rows, columns, first, text - first)
        tokens = q.expand(batch, grid.tokens, heads, size)
        place = Place(0, layers, 0.98, None, None, grid)
        try:
            routing = pattern.route(tokens, tokens, tokens, place)
        except ValueError:  # settings for other sizes or other layers
            continue
        if routing is None:
            continue
        if routing.layout.share != 1.0:
            return replace(routing.layout, share=None)  # that of a real video is another
        whole = routing.layout
    if whole is not None:
        return whole
    start = uniform(64, 64, q.device)
    map = torch.ones(1, heads, 1, 1, dtype=torch.bool, device=q.device)
    return BlockLayout.from_map(map, start, start, 64, 64, seq_q=64, seq_k=64, regular=True)


def _joint(family: Family) -> bool:
    """Whether text is among the tokens of self-attention."""
    return any(
        len(blocks.streams) > 1 and "self" in blocks.attention.values() for blocks in family.blocks
    )
