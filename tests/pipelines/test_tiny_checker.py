"""The checker against ground truth, shuffled captions and damaged frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from accel.pipelines.tiny.checker import Seen, adherence, attributes
from accel.pipelines.tiny.scenes import caption, parse, place, render, sample_scene


def _truth(count: int, moving: bool, seed: int = 3) -> list[tuple[np.ndarray, str]]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, moving=moving) for _ in range(count)]
    return [(render(scene, frames=17 if moving else 1), caption(scene)) for scene in scenes]


def _mean(pairs: list[tuple[np.ndarray, str]]) -> tuple[float, float]:
    scores = np.array([adherence(frames, text) for frames, text in pairs], dtype=float)
    return float(scores[:, 0].mean()), float(scores[:, 1].mean())


@pytest.mark.parametrize(("moving", "count"), [(True, 150), (False, 1500)])
def test_reads_ground_truth_without_error(moving: bool, count: int) -> None:
    assert _mean(_truth(count, moving)) == (1.0, 1.0)


def test_reads_two_objects() -> None:
    text = "a red circle moving left and a blue square moving up on a light background"
    frames = render(place(np.random.default_rng(1), parse(text)))
    assert set(attributes(frames)) == {
        Seen("red", "circle", "left", "light"),
        Seen("blue", "square", "up", "light"),
    }
    assert attributes(torch.from_numpy(frames)) == attributes(frames)


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_slight_noise_changes_nothing(noise: float) -> None:
    rng = np.random.default_rng(0)
    pairs = _truth(40, True)
    noisy = [(np.clip(f + noise * rng.standard_normal(f.shape), 0, 1), t) for f, t in pairs]
    assert _mean(noisy) == (1.0, 1.0)


def test_shuffled_captions_score_at_chance() -> None:
    pairs = [p for p in _truth(120, True) if " and " not in p[1]]
    shuffled = [(pairs[i][0], pairs[i - 7][1]) for i in range(len(pairs))]
    share, whole = _mean(shuffled)
    chance = (1 / 6 + 1 / 3 + 1 / 4 + 1 / 4) / 4
    assert abs(share - chance) < 0.08
    assert whole < 0.04


def test_falls_with_blur() -> None:
    pairs = _truth(25, True)
    scores = [_mean(pairs)[1]]
    for sigma in (3.0, 6.0):
        blurred = [(ndimage.gaussian_filter(f, (0, 0, sigma, sigma)), t) for f, t in pairs]
        scores.append(_mean(blurred)[1])
    assert scores[0] == 1.0 and scores[1] < 0.6 and scores[2] < 0.1


def test_frozen_frames_have_no_direction() -> None:
    pairs = _truth(25, True)
    frozen = [(np.repeat(f[:1], 17, axis=0), t) for f, t in pairs]
    share, whole = _mean(frozen)
    assert 0.55 < share < 0.76 and whole == 0.0
    assert all(seen.direction is None for f, _ in frozen for seen in attributes(f))


def test_reversed_frames_reverse_the_direction() -> None:
    for frames, text in _truth(10, True):
        swapped = text.translate(str.maketrans({}))
        for a, b in (("left", "right"), ("up", "down")):
            swapped = swapped.replace(a, "#").replace(b, a).replace("#", b)
        assert adherence(frames[::-1], swapped) == (1.0, True)


def test_one_object_too_many_or_too_few_is_wrong() -> None:
    two = "a red circle moving left and a blue square moving up on a light background"
    one = "a red circle moving left on a light background"
    rng = np.random.default_rng(2)
    assert adherence(render(place(rng, parse(two))), one) == (4 / 7, False)
    assert adherence(render(place(rng, parse(one))), two) == (4 / 7, False)
    empty = np.full((17, 3, 64, 64), 0.94)
    assert adherence(empty, one) == (0.0, False) and attributes(empty) == []


@pytest.mark.parametrize("shape", [(17, 64, 64, 3), (64, 64), (3, 64, 32)])
def test_wrong_layout_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="frames must be"):
        attributes(np.zeros(shape))


def test_wrong_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"values must lie in \[0, 1\]"):
        attributes(np.full((3, 64, 64), 200.0))
