"""The loss of the picture model: its times, the places it weighs, the captions it contrasts."""

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


def test_misnamed_changes_every_shape_and_nothing_else() -> None:
    torch.manual_seed(0)
    loss = _loss()
    tokens = _tokens("a red circle and a blue square on a light background")
    for _ in range(5):
        changed = loss.misnamed(tokens)[0] != tokens[0]
        assert changed.nonzero()[:, 0].tolist() == [3, 7]


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
    assert parts["wrong"] == 0


def test_contrast_takes_off_the_error_under_wrong_shapes() -> None:
    latents, tokens = (
        torch.randn(16, 4, 16, 16),
        _tokens(*["a red circle on a dark background"] * 16),
    )
    value, parts = _loss(contrast=0.4, emphasis=8.0)((latents, tokens))
    assert parts["wrong"] > 0
    assert value.item() == pytest.approx((parts["right"] - 0.4 * parts["wrong"]).item(), rel=1e-4)
    value.backward()


def test_every_caption_is_emptied_when_all_are_dropped() -> None:
    loss, seen = _loss(drop=1.0), []
    loss.text_encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    loss((torch.randn(2, 4, 16, 16), _tokens("a red circle on a dark background", "a")))
    assert torch.equal(seen[0], loss.empty.expand(2, -1))
