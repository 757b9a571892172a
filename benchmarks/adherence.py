"""Does a sample show what its caption says? The exact checker over a batch, and paired changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from accel.metrics import frames, lower_bound
from accel.pipelines.tiny import checker


@dataclass(frozen=True)
class Adherence:
    """Per sample: the share of its caption's attributes that are right, and whether all are."""

    share: tuple[float, ...]
    all_right: tuple[bool, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"share": list(self.share), "all_right": list(self.all_right)}


def adherence(samples: Any, captions: Sequence[str]) -> Adherence:
    """Checks each sample against its caption.

    Args:
        samples: pictures or videos in any layout that `accel.metrics` takes, values in [0, 1].

    Raises:
        ValueError: as many captions as samples are needed.
    """
    videos = np.moveaxis(frames(samples), -1, -3)
    if len(videos) != len(captions):
        raise ValueError(f"{len(videos)} samples need as many captions, got {len(captions)}")
    found = [
        checker.adherence(video[0] if len(video) == 1 else video, caption)
        for video, caption in zip(videos, captions, strict=True)
    ]
    return Adherence(tuple(f[0] for f in found), tuple(f[1] for f in found))


def change(plain: Adherence, accelerated: Adherence) -> dict[str, float]:
    """Mean change of the share and of all-right over pairs, each with its one-sided 95 % bound."""
    share = lower_bound(plain.share, accelerated.share)
    right = lower_bound(
        [float(r) for r in plain.all_right], [float(r) for r in accelerated.all_right]
    )
    return {
        "adherence_change": share.estimate,
        "adherence_change_low": share.low,
        "all_right_change": right.estimate,
        "all_right_change_low": right.low,
    }
