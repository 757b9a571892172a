"""How far two sets of samples are apart, and how sure a measured difference is.

Pictures are `(B, 3, H, W)` or `(B, H, W, 3)`, videos `(B, F, 3, H, W)` or `(B, F, H, W, 3)`: torch
tensors or numpy arrays of floats in [0, 1], as diffusers' `output_type="pt"` and `"np"` give them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from skimage.metrics import structural_similarity

PSNR_CAP = 100.0
LAYOUTS = "(B, 3, H, W), (B, H, W, 3), (B, F, 3, H, W) or (B, F, H, W, 3)"
WINDOW = 11


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval around it; `high` is infinite where the bound is one-sided."""

    estimate: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def psnr_each(reference: Any, sample: Any) -> list[float]:
    """Peak signal-to-noise ratio of each sample in dB, over all its frames, capped at 100.

    Of frames × 255 with a peak of 255, which is the same as of frames in [0, 1] with a peak of 1.
    """
    first, second = _pair(reference, sample)
    errors = ((first - second) ** 2).mean(axis=(1, 2, 3, 4))
    return [PSNR_CAP if e <= 10 ** (-PSNR_CAP / 10) else float(-10 * np.log10(e)) for e in errors]


def psnr(reference: Any, sample: Any) -> float:
    """Mean over samples of `psnr_each`, in dB."""
    return float(np.mean(psnr_each(reference, sample)))


def ssim_each(reference: Any, sample: Any) -> list[float]:
    """Structural similarity of each sample, mean over its frames: 1 for equal, near 0 unrelated.

    Wang et al., "Image quality assessment" (2004): Gaussian window of 11 pixels and sigma 1.5, each
    colour channel alone. Frames must be at least 11 pixels high and wide.
    """
    first, second = _pair(reference, sample)
    if min(first.shape[2:4]) < WINDOW:
        raise ValueError(
            f"SSIM needs frames of at least {WINDOW}×{WINDOW} pixels, got "
            f"{first.shape[2]}×{first.shape[3]}"
        )
    return [
        float(np.mean([_frame_ssim(x, y) for x, y in zip(a, b, strict=True)]))
        for a, b in zip(first, second, strict=True)
    ]


def ssim(reference: Any, sample: Any) -> float:
    """Mean over samples of `ssim_each`."""
    return float(np.mean(ssim_each(reference, sample)))


def lower_bound(
    plain: Sequence[float],
    accelerated: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of `accelerated - plain` over pairs (prompt and seed) and its one-sided lower bound.

    Percentile bootstrap over pairs: with probability `level` the true change is above `low`.
    """
    if len(plain) != len(accelerated):
        raise ValueError(f"scores are not paired: {len(plain)} plain, {len(accelerated)} others")
    change = _finite(np.asarray(accelerated, float) - np.asarray(plain, float), "scores")
    means = _resampled(change, resamples, seed).mean(axis=1)
    return Interval(float(change.mean()), float(np.quantile(means, 1 - level)), float("inf"))


def ratio_interval(
    pairs: Sequence[tuple[float, float]],
    *,
    statistic: Literal["median", "mean"] = "median",
    level: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """Ratio first / second of paired timings with its two-sided interval.

    The median, or the geometric mean, of each pair's ratio; percentile bootstrap on log ratios over
    pairs, so that the interval of the inverse ratio is the inverse of the interval.
    """
    if statistic not in ("median", "mean"):
        raise ValueError(f"statistic is 'median' or 'mean', got {statistic!r}")
    seconds = _finite(np.asarray(pairs, float), "timings")
    if seconds.ndim != 2 or seconds.shape[1] != 2 or (seconds <= 0).any():
        raise ValueError("timings are pairs of positive seconds: [(a, b), …]")
    logs = np.log(seconds[:, 0] / seconds[:, 1])
    reduce = np.median if statistic == "median" else np.mean
    draws = reduce(_resampled(logs, resamples, seed), axis=1)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(*(float(np.exp(x)) for x in (reduce(logs), low, high)))


def frames(samples: Any, name: str = "samples") -> np.ndarray:
    """Samples in any of the four layouts as float64 `(B, F, H, W, 3)`; a picture is one frame.

    `ValueError` names what is wrong with the shape, the type or the range.
    """
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        array = (samples.float() if samples.is_floating_point() else samples).numpy()
    else:
        array = np.asarray(samples)
    if array.ndim not in (4, 5) or 3 not in (array.shape[-1], array.shape[-3]) or not array.size:
        raise ValueError(f"{name} must be {LAYOUTS}, got {array.shape}")
    if array.shape[-1] == array.shape[-3]:
        raise ValueError(f"{name}: which axis of {array.shape} holds the 3 channels is not clear")
    if array.dtype.kind != "f":
        raise ValueError(f"{name} must be floats in [0, 1], got {array.dtype}; divide by 255 first")
    array = array.astype(np.float64)
    low, high = array.min(), array.max()
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    if array.shape[-1] != 3:
        array = np.moveaxis(array, -3, -1)
    return array[:, None] if array.ndim == 4 else array


def _pair(reference: Any, sample: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = frames(reference, "reference"), frames(sample, "sample")
    if first.shape != second.shape:
        raise ValueError(
            f"reference and sample differ in (B, F, H, W, 3): {first.shape} and {second.shape}"
        )
    return first, second


def _frame_ssim(first: np.ndarray, second: np.ndarray) -> float:
    return structural_similarity(
        first,
        second,
        channel_axis=-1,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite numbers, at least one, got {values.tolist()}")
    return values


def _resampled(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """`(resamples, n)` draws of `values` with replacement."""
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return values[picks]
