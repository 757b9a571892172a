"""The velocities that a trained U-Net gives as goals."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from accel.pipelines import tiny
from accel.pipelines.tiny import picture
from accel.pipelines.tiny.teacher import Teacher, log_ratios
from accel.pipelines.tiny.train_mmdit import flow_loss, load_autoencoder, readers, untrained
from accel.pipelines.tiny.train_picture import pictures_of

SCHEDULER = DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear")


class Knows(nn.Module):
    """Gives v of latents and noise it was told of, and keeps the times it was asked at."""

    def __init__(self, latents: Tensor, noise: Tensor, signal: Tensor) -> None:
        super().__init__()
        self.v = signal * noise - (1 - signal**2).sqrt() * latents
        self.times = torch.empty(0)

    def forward(self, noisy: Tensor, times: Tensor, text: Tensor) -> SimpleNamespace:
        self.times = times
        return SimpleNamespace(sample=self.v)


class Mute(nn.Module):
    def forward(self, tokens: Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=tokens)


def flow_level(times: Tensor) -> Tensor:
    """The flow noise levels (B, 1, 1, 1) with the signal-to-noise ratio of whole times."""
    return torch.sigmoid(log_ratios(SCHEDULER.alphas_cumprod.double())[times])[:, None, None, None]


def test_a_right_v_becomes_the_right_velocity_at_the_right_time() -> None:
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 4, 4, 16, 16, dtype=torch.double)
    times = torch.tensor([0, 250, 600, 999])
    sigma = flow_level(times)
    unet = Knows(latents, noise, SCHEDULER.alphas_cumprod[times].double().sqrt().view(4, 1, 1, 1))
    tokens = torch.zeros(4, 32, dtype=torch.long)
    noisy = (1 - sigma) * latents + sigma * noise
    velocity, _ = Teacher(unet, Mute(), SCHEDULER)(noisy, sigma, tokens)
    torch.testing.assert_close(unet.times, times.float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(velocity, noise - latents, atol=1e-5, rtol=1e-5, check_dtype=False)


def test_levels_it_has_not_learned_are_told() -> None:
    inner = flow_level(torch.tensor([10, 990]))
    sigma = torch.cat([inner, torch.tensor([0.001, 0.999]).view(2, 1, 1, 1)])
    unet = Knows(torch.zeros(4, 4, 16, 16), torch.zeros(4, 4, 16, 16), torch.tensor(0.5))
    tokens = torch.zeros(4, 32, dtype=torch.long)
    _, known = Teacher(unet, Mute(), SCHEDULER)(torch.randn(4, 4, 16, 16), sigma, tokens)
    assert known.tolist() == [True, True, False, False]


def test_noise_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="must predict v"):
        Teacher(nn.Identity(), Mute(), DDIMScheduler())


def test_the_shipped_model_teaches_early_and_only_then() -> None:
    home = tiny.path("shapes-t2i")
    teacher = Teacher.of(home)
    pixels, captions = pictures_of(np.random.default_rng(4), 16, "heldout")
    with torch.no_grad():
        latents = load_autoencoder(home).encode(pixels).latent_dist.mean
    words = picture.build_tokenizer()
    tokens = words(captions, padding="max_length", return_tensors="pt").input_ids
    torch.manual_seed(2)
    noise, sigma = torch.randn_like(latents), torch.full((16, 1, 1, 1), 0.5)
    velocity, known = teacher((1 - sigma) * latents + sigma * noise, sigma, tokens)
    assert known.all()
    assert (velocity - (noise - latents)).square().mean() < 0.1  # of about 2

    parts, reader = untrained(), readers()

    def loss(early: bool, teacher: Teacher | None) -> tuple[float, float]:
        torch.manual_seed(3)
        batch = latents, tokens, torch.tensor(early)
        value, told = flow_loss(*parts, reader, batch, teacher=teacher)
        return told["plain"].item(), value.item()

    assert loss(False, teacher) == loss(False, None) == loss(True, None)
    taught, alone = loss(True, teacher), loss(True, None)
    assert taught[0] == alone[0], "the error told is that from the pictures themselves"
    assert taught[1] != alone[1] and taught[1] == pytest.approx(alone[1], rel=0.1)
