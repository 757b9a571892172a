"""What a trained picture model predicts, as a goal with less noise in it than a single sample has.

The velocity that flow matching regresses to is that of one sample and one noise; a trained model
gives about its mean over all that could have led to the same noisy latents, which has the same
minimum and less variance (Xu et al. 2023, "Stable target field", arXiv:2302.00670, has that mean
from a reference batch instead of a model).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from . import MANIFEST, verify


def log_ratios(alphas_cumprod: Tensor) -> Tensor:
    """log(noise / signal) of every time of a variance-preserving schedule, rising."""
    return 0.5 * ((1 - alphas_cumprod).log() - alphas_cumprod.log())


class Teacher:
    """Flow velocities, noise - latents, as a U-Net that predicts v on the same latents sees them.

    Args:
        unet: latents (B, 4, h, w), times (B,) and text (B, L, C) to v (B, 4, h, w).
        text_encoder: token numbers (B, L) to text (B, L, C).
        scheduler: that of the U-Net; of it the noise levels are read.

    Raises:
        ValueError: the U-Net predicts something else than v.
    """

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, scheduler: DDIMScheduler
    ) -> None:
        if (kind := scheduler.config.prediction_type) != "v_prediction":
            raise ValueError(f"a teacher must predict v (v_prediction), not {kind}")
        self._parts = nn.ModuleList([unet, text_encoder]).eval().requires_grad_(False)
        self._ratios = log_ratios(scheduler.alphas_cumprod.double())

    @classmethod
    def of(cls, pipeline: Path) -> Teacher:
        """That of a pipeline folder, in single precision; a shipped one is verified."""
        if (pipeline / MANIFEST).is_file():
            verify(pipeline)
        single = {"torch_dtype": torch.float32}
        return cls(
            UNet2DConditionModel.from_pretrained(pipeline / "unet", **single),
            CLIPTextModel.from_pretrained(pipeline / "text_encoder", **single),
            DDIMScheduler.from_pretrained(pipeline / "scheduler"),
        )

    @torch.no_grad()
    def __call__(self, noisy: Tensor, sigma: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Velocities (B, 4, h, w) at latents (B, 4, h, w), flow noise levels (B, 1, 1, 1) in
        (0, 1) and tokens (B, L), and which of them (B,) lie within the U-Net's own levels."""
        unet, text_encoder = self._parts.to(noisy.device)
        rows = self._ratios.to(noisy.device)
        ratio = torch.special.logit(sigma.flatten().double())
        right = torch.searchsorted(rows, ratio).clamp(1, len(rows) - 1)
        share = (ratio - rows[right - 1]) / (rows[right] - rows[right - 1])
        times = (right - 1 + share).clamp(0, len(rows) - 1)
        scale = ((1 - sigma) ** 2 + sigma**2).sqrt()
        text = text_encoder(tokens).last_hidden_state
        v = unet(noisy / scale, times.float(), text).sample.float()
        latents = ((1 - sigma) * noisy / scale - sigma * v) / scale
        return (noisy - latents) / sigma, (rows[0] <= ratio) & (ratio <= rows[-1])
