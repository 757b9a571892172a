"""What the denoiser of `shapes-t2i` learns from: velocities, weighed where a shape is.

A shape covers little of a picture, so that its outline hardly lowers the mean error. `emphasis`
brings it forward; it changes what is learned a little, so the last part of a training goes
without.
"""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import max_pool2d
from transformers import CLIPTextModel, CLIPTokenizer


def times_of(count: int, shift: float = 1.0) -> Tensor:
    """`count` stratified random times (count,) in 0..999; above 1 `shift` leans towards noise
    (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
    u = (torch.randperm(count) + torch.rand(count)) / count
    return (1000 * shift * u / (1 + (shift - 1) * u)).long()


def shape_places(latents: Tensor) -> Tensor:
    """1 on and within two cells of a shape, else 0: (B, 1, h, w) for standardised (B, C, h, w)."""
    away = latents - latents.flatten(2).median(-1).values[:, :, None, None]
    return max_pool2d((away.norm(dim=1, keepdim=True) > 1).float(), 5, stride=1, padding=2)


class VelocityLoss:
    """Maps latents (B, 4, h, w) and tokens (B, L) to the loss, and to the error without weights."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: DDIMScheduler,
        *,
        shift: float = 1.0,
        emphasis: float = 1.0,
        drop: float = 0.1,
    ) -> None:
        self.unet, self.text_encoder, self.scheduler = unet, text_encoder, scheduler
        self.shift, self.emphasis, self.drop = shift, emphasis, drop
        self.empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids

    def __call__(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        latents, tokens = batch
        count, device = len(latents), latents.device
        dropped = torch.rand(count, 1, device=device) < self.drop
        tokens = torch.where(dropped, self.empty.to(device), tokens)
        noise, times = torch.randn_like(latents), times_of(count, self.shift).to(device)
        noisy = self.scheduler.add_noise(latents, noise, times)
        goal = self.scheduler.get_velocity(latents, noise, times)
        # weighed where all is noise, shapes would be guessed twice rather than missed once
        signal = self.scheduler.alphas_cumprod.to(device)[times].sqrt()[:, None, None, None]
        weight = 1 + (self.emphasis - 1) * shape_places(latents) * signal
        weight = weight / weight.mean()
        out = self.unet(noisy, times, self.text_encoder(tokens).last_hidden_state).sample
        errors = (out.float() - goal).square()
        return (errors * weight).mean(), {"plain": errors.detach().mean()}
