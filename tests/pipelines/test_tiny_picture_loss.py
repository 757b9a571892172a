"""The loss of the picture model: its times, the places it weighs."""

from __future__ import annotations

import pytest
import torch

from accel.pipelines.tiny import picture
from accel.pipelines.tiny.picture_loss import VelocityLoss, shape_places, times_of


def _loss(**options) -> VelocityLoss:
    torch.manual_seed(0)
    tokenizer = picture.build_tokenizer()
    encoder, unet = picture.build_text_encoder(tokenizer), picture.build_unet()
    return VelocityLoss(unet, encoder, tokenizer, picture.build_scheduler(), **options)


def _tokens(*captions: str) -> torch.Tensor:
    tokenizer = picture.build_tokenizer()
    return tokenizer(list(captions), padding="max_length", return_tensors="pt").input_ids


def test_times_are_stratified_and_lean_towards_noise() -> None:
    torch.manual_seed(0)
    even, noisy = times_of(1000).sort().values, times_of(1000, 3.0)
    assert torch.equal(even, torch.arange(1000))
    assert noisy.min() >= 0 and noisy.max() <= 999
    assert noisy.float().median() == pytest.approx(750, abs=2)


def test_shape_places_are_the_square_and_its_edges() -> None:
    latents = torch.full((1, 4, 16, 16), 0.3)
    latents[:, :, 6:9, 7:11] = 2.0
    expected = torch.zeros(1, 1, 16, 16)
    expected[:, :, 4:11, 5:13] = 1.0
    assert torch.equal(shape_places(latents), expected)


def test_loss_is_the_weighted_velocity_error() -> None:
    latents, tokens = torch.randn(8, 4, 16, 16), _tokens(*["a red circle on a dark background"] * 8)
    loss = _loss(drop=0.0)
    loss.unet.forward = lambda noisy, *_: type("Out", (), {"sample": torch.zeros_like(noisy)})
    torch.manual_seed(1)
    value, parts = loss((latents, tokens))
    torch.manual_seed(1)
    torch.rand(8, 1)
    noise, times = torch.randn_like(latents), times_of(8)
    expected = loss.scheduler.get_velocity(latents, noise, times).square().mean()
    assert value == pytest.approx(expected.item(), rel=1e-5)
    assert parts["plain"] == pytest.approx(expected.item(), rel=1e-5)


def test_emphasis_weighs_places_that_hold_a_shape() -> None:
    latents = torch.full((8, 4, 16, 16), 0.3)
    latents[:, :, 6:9, 7:11] = 2.0
    tokens = _tokens(*["a red circle on a dark background"] * 8)
    values = []
    for emphasis in (1.0, 8.0):
        loss = _loss(emphasis=emphasis, drop=0.0)
        loss.unet.forward = lambda noisy, *_: type("Out", (), {"sample": torch.zeros_like(noisy)})
        torch.manual_seed(1)
        values.append(loss((latents, tokens)))
    (even, plain), (weighed, same) = values
    assert even == pytest.approx(plain["plain"].item()) and same == plain
    assert weighed > even  # the shape is brighter than what surrounds it


def test_every_caption_is_emptied_when_all_are_dropped() -> None:
    loss, seen = _loss(drop=1.0), []
    loss.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss((torch.randn(2, 4, 16, 16), _tokens("a red circle on a dark background", "a")))
    assert torch.equal(seen[0], loss.empty.expand(2, -1))
