"""Scenes of the shipped models: captions, split, drawing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from accel.pipelines.tiny.scenes import (
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    SHAPES,
    Scene,
    caption,
    parse,
    place,
    render,
    sample_scene,
    split_of,
)


def _scenes(count: int, **options) -> list[Scene]:
    rng = np.random.default_rng(7)
    return [sample_scene(rng, **options) for _ in range(count)]


@pytest.mark.parametrize("moving", [True, False])
def test_caption_and_parse_are_inverse(moving: bool) -> None:
    for scene in _scenes(200, moving=moving):
        described = parse(caption(scene))
        assert described.ground == scene.ground
        assert described.shapes == tuple(placed.what for placed in scene.objects)
        assert all((s.direction is not None) == moving for s in described.shapes)


def test_captions_read_as_documented() -> None:
    rng = np.random.default_rng(0)
    text = "a red circle moving left and a blue square moving up on a light background"
    assert caption(place(rng, parse(text))) == text


@pytest.mark.parametrize("text", ["", "a red circle", "a red circle on a red background"])
def test_unreadable_caption_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read the caption"):
        parse(text)


@pytest.mark.parametrize("moving", [True, False])
def test_split_keeps_order_and_covers_every_word(moving: bool) -> None:
    for split in ("train", "heldout"):
        scenes = _scenes(300, moving=moving, split=split)
        assert {split_of(caption(scene)) for scene in scenes} == {split}
        words = set(itertools.chain.from_iterable(caption(s).split() for s in scenes))
        assert words >= {*COLOURS, *SHAPES, *GROUNDS, *(DIRECTIONS if moving else ())}
    first, second = "a red circle moving left", "a blue square moving up"
    ground = "on a light background"
    assert split_of(f"{first} and {second} {ground}") == split_of(f"{second} and {first} {ground}")
    with pytest.raises(ValueError, match="split must be"):
        sample_scene(np.random.default_rng(0), split="test")


def test_about_a_quarter_hold_two_shapes_of_different_colours() -> None:
    scenes = _scenes(1000)
    pairs = [scene for scene in scenes if len(scene.objects) == 2]
    assert 200 < len(pairs) < 300
    assert all(a.what.colour != b.what.colour for a, b in (s.objects for s in pairs))


@pytest.mark.parametrize("size", [64, 96])
def test_shapes_stay_inside_and_apart(size: int) -> None:
    for scene in _scenes(40):
        video = render(scene, size=size)
        assert video.shape == (17, 3, size, size) and video.dtype == np.float32
        assert video.min() >= 0 and video.max() <= 1
        ground = np.array(GROUNDS[scene.ground], dtype=np.float32)
        for edge in (video[..., 0], video[..., -1], video[..., 0, :], video[..., -1, :]):
            assert np.allclose(edge, ground[None, :, None])
        for placed in scene.objects:
            x, y = (placed.centres(17)[5] * size / 64).astype(int)
            assert np.allclose(video[5, :, y, x], COLOURS[placed.what.colour])


def test_edges_are_antialiased_and_a_picture_is_the_first_frame() -> None:
    scene = _scenes(1)[0]
    video = render(scene)
    assert len(np.unique(video[0, 0])) > 5
    assert np.array_equal(render(scene, frames=1)[0], video[0])


def test_motion_follows_the_words() -> None:
    for scene in _scenes(50):
        for placed in scene.objects:
            path = placed.centres(17)[-1] - placed.centres(17)[0]
            towards = np.array(DIRECTIONS[placed.what.direction or ""])
            assert np.allclose(path, placed.travel * towards, atol=1e-4)
            assert 16 <= placed.travel <= 24


def test_same_seed_same_scene() -> None:
    assert _scenes(20) == _scenes(20)
