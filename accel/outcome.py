"""What came of a request: the samples, how they compare, and the files that show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .files import atomic
from .load import Model
from .media import MARK, enlarge, side_by_side, to_uint8, write_picture, write_video
from .plan import Plan
from .report import Report

RATES = {"Wan": 16, "CogVideoX": 8, "LTX": 24, "HunyuanVideo": 24, "Mochi": 30}
SHIPPED_RATE = 10
RATE = 16


@dataclass(frozen=True)
class Sample:
    """One run and what it made.

    Attributes:
        frames: (F, H, W, 3) in [0, 1]; a picture is one frame.
        video: whether it is a video.
        seconds: wall time of the whole call, with text encoding and decoding.
        seconds_loop: wall time of the denoising loop; None where the pipeline shows no bar.
        adherence: share of the caption's attributes that the exact checker finds.
    """

    frames: np.ndarray
    video: bool
    seconds: float
    seconds_loop: float | None = None
    adherence: float | None = None


@dataclass(frozen=True)
class Outcome:
    """An accelerated sample, and the plain one with the same seed where it was asked for."""

    model: Model
    plan: Plan
    call: Mapping[str, Any]
    report: Report
    accelerated: Sample
    plain: Sample | None = None
    psnr: float | None = None
    ssim: float | None = None

    @property
    def label(self) -> str:
        """The recipe's name, else the methods'."""
        return self.plan.name or " + ".join(type(m).__name__ for m in self.plan.methods)

    @property
    def speedup(self) -> float | None:
        """Wall time of the plain call over that of the accelerated one."""
        return None if self.plain is None else self.plain.seconds / self.accelerated.seconds

    @property
    def loop_speedup(self) -> float | None:
        """The same of the denoising loop alone."""
        if self.plain is None or self.plain.seconds_loop is None:
            return None
        return self.plain.seconds_loop / self.report.seconds_loop

    def to_dict(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """The object that `accel generate --json` prints."""
        plain = self.plain
        return {
            "model": self.model.name,
            "recipe": self.plan.name or None,
            "methods": json.loads(self.plan.to_json())["methods"],
            "seconds_plain": None if plain is None else plain.seconds,
            "seconds_accelerated": self.accelerated.seconds,
            "speedup": self.speedup,
            "computed_fraction": self.report.computed_fraction,
            "psnr": self.psnr,
            "ssim": self.ssim,
            "adherence_plain": None if plain is None else plain.adherence,
            "adherence_accelerated": self.accelerated.adherence,
            "files": {name: str(path) for name, path in files.items()},
        }

    def labels(self) -> tuple[str, str]:
        """What stands above the two halves of the comparison."""
        assert self.plain is not None and self.speedup is not None
        return (
            f"plain  {_short(self.plain.seconds)}",
            f"{self.label}  {_short(self.accelerated.seconds)}  ({self.speedup:.2f}x)",
        )

    def write(self, folder: Path, fps: float | None = None) -> dict[str, Path]:
        """Write everything to `folder`; what an earlier run left there is replaced or removed.

        Returns:
            What each file is -> where it is.
        """
        sample, rate = self.accelerated, fps or self.rate()
        files = {"accelerated": _write(folder / "accelerated", to_uint8(sample.frames), rate)}
        if self.plain is None:
            _remove_others(folder, files)
            return files
        plain = to_uint8(self.plain.frames)
        files["plain"] = _write(folder / "plain", plain, rate)
        both = side_by_side(plain, to_uint8(sample.frames), self.labels())
        files["side_by_side"] = _write(folder / "side_by_side", both, rate)
        with atomic(folder / "report.json") as part:
            self.report.save(part)
        with atomic(folder / "report.txt") as part:
            part.write_text(f"{self.report}\n")
        with atomic(folder / "report.png") as part:
            self.report.plot(part)
        for kind in ("json", "txt", "png"):
            files[f"report_{kind}"] = folder / f"report.{kind}"
        _remove_others(folder, files)
        return files

    def rate(self) -> float:
        """Frames a second that the model was made for."""
        return _rate(self.model)


def write_plain(model: Model, sample: Sample, folder: Path, fps: float | None = None) -> Path:
    """Write a plain run whose accelerated one failed, and remove what an earlier run left."""
    path = _write(folder / "plain", to_uint8(sample.frames), fps or _rate(model))
    _remove_others(folder, {"plain": path})
    return path


def _remove_others(folder: Path, files: Mapping[str, Path]) -> None:
    """Remove what this module wrote to `folder` before, and only that, if it is none of `files`."""
    stems = ("accelerated", "plain", "side_by_side")
    stale = [folder / f"{stem}{suffix}" for stem in stems for suffix in (".png", ".mp4")]
    stale = [path for path in stale if _holds(path, MARK)]
    if _holds(folder / "report.json", '"computed_fraction"'):
        stale += [folder / f"report.{kind}" for kind in ("json", "txt", "png")]
    for path in stale:
        if path not in files.values():
            path.unlink(missing_ok=True)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and text.encode() in path.read_bytes()


def _rate(model: Model) -> float:
    if model.shipped:
        return SHIPPED_RATE
    name = type(model.pipe).__name__
    return next((rate for start, rate in RATES.items() if name.startswith(start)), RATE)


def _short(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


def _write(stem: Path, frames: np.ndarray, rate: float) -> Path:
    if len(frames) == 1:
        return write_picture(stem.with_suffix(".png"), frames[0])
    return write_video(stem.with_suffix(".mp4"), enlarge(frames), rate)
