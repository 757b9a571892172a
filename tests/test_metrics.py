"""Metrics against values computed by hand, and errors that say what is wrong."""

import math

import numpy as np
import pytest
import torch

from accel.metrics import (
    Interval,
    frames,
    lower_bound,
    psnr,
    psnr_each,
    ratio_interval,
    ssim,
    ssim_each,
)

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.random((2, 16, 20, 3))
VIDEOS = RANDOM.random((2, 5, 16, 20, 3))


def test_psnr_of_a_known_error():
    reference = torch.full((1, 3, 4, 4), 0.5)
    assert psnr(reference, reference + 0.1) == pytest.approx(20.0, abs=1e-4)
    # on frames × 255: one of 48 values off by 51 -> 10 log10(255² / (51² / 48))
    sample = reference.clone()
    sample[0, 0, 0, 0] += 51 / 255
    assert psnr(reference, sample) == pytest.approx(10 * math.log10(25 * 48), abs=1e-4)


def test_psnr_is_the_mean_of_capped_samples_not_of_errors():
    reference = np.zeros((3, 8, 8, 3))
    sample = reference.copy()
    sample[1] += 0.1
    sample[2] += 1.0
    assert psnr_each(reference, sample) == pytest.approx([100.0, 20.0, 0.0])
    assert psnr(reference, sample) == pytest.approx(40.0)
    assert psnr_each(reference, reference + 1e-7) == [100.0] * 3


def test_psnr_of_a_video_is_over_all_its_frames():
    reference = np.zeros((1, 4, 8, 8, 3))
    sample = reference.copy()
    sample[0, 0] = 0.2  # mean square 0.04 / 4 = 0.01
    assert psnr(reference, sample) == pytest.approx(20.0)


def test_ssim_bounds_and_direction():
    assert ssim(PICTURES, PICTURES) == pytest.approx(1.0)
    near, far = ssim(PICTURES, PICTURES * 0.9 + 0.05), ssim(PICTURES, PICTURES[::-1].copy())
    assert 1 > near > 0.9 > far > -1


def test_ssim_of_flat_pictures_is_the_luminance_term():
    first, second = np.full((1, 16, 16, 3), 0.4), np.full((1, 16, 16, 3), 0.6)
    c1 = 0.01**2
    expected = (2 * 0.4 * 0.6 + c1) / (0.4**2 + 0.6**2 + c1)
    assert ssim(first, second) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_a_video_is_the_mean_over_frames():
    sample = np.clip(VIDEOS + RANDOM.normal(0, 0.1, VIDEOS.shape), 0, 1)
    each = [
        np.mean([ssim(v[i : i + 1], s[i : i + 1]) for i in range(5)])
        for v, s in zip(VIDEOS, sample, strict=True)
    ]
    assert ssim_each(VIDEOS, sample) == pytest.approx(each)


@pytest.mark.parametrize("samples", [PICTURES, VIDEOS])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_layouts_agree(samples, metric):
    other = samples * 0.8
    expected = metric(samples, other)
    first, second = (torch.from_numpy(x).movedim(-1, -3) for x in (samples, other))
    assert metric(first, second) == pytest.approx(expected, abs=1e-5)
    assert metric(first, other) == pytest.approx(expected, abs=1e-5)


def test_frames_are_batch_frames_height_width_channels():
    assert frames(torch.rand(2, 3, 16, 20)).shape == (2, 1, 16, 20, 3)
    assert frames(torch.rand(2, 5, 3, 16, 20)).shape == (2, 5, 16, 20, 3)
    assert frames(VIDEOS).shape == (2, 5, 16, 20, 3)
    assert frames(torch.rand(1, 3, 8, 8).bfloat16()).dtype == np.float64


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((8, 8, 3)), r"must be \(B, 3, H, W\)"),
        (np.zeros((2, 8, 8, 4)), r"must be .* got \(2, 8, 8, 4\)"),
        (np.zeros((0, 8, 8, 3)), "must be"),
        (np.zeros((2, 3, 8, 3)), "3 channels is not clear"),
        (np.zeros((2, 8, 8, 3), np.uint8), "divide by 255"),
        (np.full((2, 8, 8, 3), -1.0), r"\[0, 1\], got values from -1"),
        (np.full((2, 8, 8, 3), 255.0), r"\[0, 1\]"),
        (np.full((2, 8, 8, 3), np.nan), r"\[0, 1\]"),
    ],
)
def test_wrong_input_is_named(samples, message):
    with pytest.raises(ValueError, match=message):
        psnr(np.zeros((2, 8, 8, 3)), samples)


def test_unequal_shapes_and_small_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 8, 8, 3\) and \(1, 1, 8, 8, 3\)"):
        psnr(np.zeros((2, 8, 8, 3)), np.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="11×11 pixels, got 8×8"):
        ssim(np.zeros((2, 8, 8, 3)), np.zeros((2, 8, 8, 3)))


def test_lower_bound_without_spread_is_the_difference():
    change = lower_bound([0.5, 0.75, 1.0], [0.25, 0.5, 0.75])
    assert change == Interval(-0.25, -0.25, math.inf)


def test_lower_bound_of_one_loss_in_ten_is_exact():
    # losses in a resample of 10 are Binomial(10, 0.1); P(3 or more) = 7.0 %, P(4 or more) = 1.3 %
    change = lower_bound([1.0] * 10, [1.0] * 9 + [0.0], resamples=20_000)
    assert change.estimate == pytest.approx(-0.1)
    assert change.low == pytest.approx(-0.3)


def test_lower_bound_narrows_with_more_pairs():
    plain = RANDOM.random(400)
    other = plain - 0.1 + RANDOM.normal(0, 0.2, 400)
    few, many = lower_bound(plain[:25], other[:25]), lower_bound(plain, other)
    assert few.estimate - few.low > 2 * (many.estimate - many.low) > 0
    standard_error = np.std(other - plain) / 20
    assert many.estimate - many.low == pytest.approx(1.645 * standard_error, rel=0.1)


def test_ratio_of_constant_pairs_is_exact():
    found = ratio_interval([(3.0, 2.0), (6.0, 4.0), (1.5, 1.0)])
    assert (found.estimate, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_ratio_is_the_median_or_the_geometric_mean():
    pairs = [(1.0, 1.0), (2.0, 1.0), (8.0, 1.0)]
    assert ratio_interval(pairs).estimate == pytest.approx(2.0)
    assert ratio_interval(pairs, statistic="mean").estimate == pytest.approx(16 ** (1 / 3))


def test_ratio_interval_of_three_pairs_spans_them_and_inverts():
    # a resample's median is the smallest ratio with probability 7/27, so the 2.5 % quantile is it
    pairs = [(1.0, 1.0), (2.0, 1.0), (8.0, 1.0)]
    found = ratio_interval(pairs)
    assert (found.low, found.high) == pytest.approx((1.0, 8.0))
    inverse = ratio_interval([(b, a) for a, b in pairs])
    assert (inverse.low, inverse.high) == pytest.approx((1 / 8, 1.0))
    assert found.half_width == pytest.approx(3.5)


def test_ratio_interval_covers_the_truth():
    covered = 0
    for seed in range(200):
        logs = np.random.default_rng(seed).normal(math.log(1.02), 0.05, 40)
        found = ratio_interval([(math.exp(x), 1.0) for x in logs], statistic="mean", resamples=500)
        covered += found.low <= 1.02 <= found.high
    assert 0.88 * 200 <= covered <= 200


@pytest.mark.parametrize("pairs", [[], [(1.0, 0.0)], [(1.0, -1.0)], [(1.0, math.nan)], [(1.0,)]])
def test_bad_timings_are_refused(pairs):
    with pytest.raises(ValueError, match="timings"):
        ratio_interval(pairs)


def test_unpaired_scores_and_unknown_statistic_are_refused():
    with pytest.raises(ValueError, match="2 plain, 1 others"):
        lower_bound([1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="median"):
        ratio_interval([(1.0, 1.0)], statistic="mode")
