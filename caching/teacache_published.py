"""Coefficients that TeaCache's authors published, and the checkpoints they were fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Published:
    """A fitted polynomial.

    Attributes:
        coefficients: highest power first.
        indicator: what it was fitted on; None for whatever the model has.
        model: class name of the denoiser.
        config: entries of its config that tell the checkpoint from others of that class.
    """

    coefficients: tuple[float, ...]
    indicator: Literal["modulated", "embedding"] | None
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def _wan(*coefficients: float, heads: int, image: bool) -> Published:
    # fitted on the projected time embedding, which is what the blocks are given
    config = {"num_attention_heads": heads, "in_channels": 36 if image else 16}
    return Published(coefficients, "embedding", "WanTransformer3DModel", config)


def _cogvideox(*coefficients: float, heads: int, patch: int | None, image: bool) -> Published:
    config = {
        "num_attention_heads": heads,
        "patch_size_t": patch,
        "in_channels": 32 if image else 16,
    }
    return Published(coefficients, "embedding", "CogVideoXTransformer3DModel", config)


PUBLISHED: dict[str, Published] = {
    "flux": Published(
        (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
        "modulated",
        "FluxTransformer2DModel",
        {"num_layers": 19, "num_single_layers": 38},
    ),
    "hunyuan-video": Published(
        (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
        "modulated",
        "HunyuanVideoTransformer3DModel",
        {"num_layers": 20, "num_single_layers": 40},
    ),
    "ltx": Published(
        (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
        "modulated",
        "LTXVideoTransformer3DModel",
        {"num_layers": 28},
    ),
    "mochi": Published(
        (-3512.41319, 811.675948, -60.9400215, 2.42429681, 0.00305291719),
        "modulated",
        "MochiTransformer3DModel",
        {"num_layers": 48},
    ),
    "wan-1.3b": _wan(
        -52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664, heads=12, image=False
    ),
    "wan-14b": _wan(
        -303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525, heads=40, image=False
    ),
    "wan-14b-i2v-480p": _wan(
        257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977, heads=40, image=True
    ),
    "wan-14b-i2v-720p": _wan(
        8107.0546, 2133.93892, -372.934672, 16.6203073, -0.0417769401, heads=40, image=True
    ),
    "cogvideox-2b": _cogvideox(
        -31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434,
        heads=30, patch=None, image=False,
    ),
    "cogvideox-5b": _cogvideox(
        -1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339,
        heads=48, patch=None, image=False,
    ),
    "cogvideox-5b-i2v": _cogvideox(
        -1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339,
        heads=48, patch=None, image=True,
    ),
    "cogvideox-1.5-5b": _cogvideox(
        250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703,
        heads=48, patch=2, image=False,
    ),
    "cogvideox-1.5-5b-i2v": _cogvideox(
        122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322,
        heads=48, patch=2, image=True,
    ),
}  # fmt: skip
"""By name; of two that fit one checkpoint, the first is taken where none is named."""


def published(denoiser: torch.nn.Module) -> Published | None:
    """The set fitted on the checkpoint that `denoiser` is, as far as its config tells."""
    module = getattr(denoiser, "_orig_mod", denoiser)
    config = getattr(module, "config", {})
    for fitted in PUBLISHED.values():
        if type(module).__name__ == fitted.model and all(
            config.get(name) == value for name, value in fitted.config.items()
        ):
            return fitted
    return None
