"""The shipped models as a benchmark uses them: held-out captions in, decoded frames out."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from accel.pipelines.tiny.scenes import caption, sample_scene
from benchmarks.settings import Setting, ready
from benchmarks.work import WorkCounter

SETS = {"sweep": 3_000_000, "evaluation": 4_000_000, "calibration": 5_000_000}
"""First seed of the samples on which settings are chosen, judged, and fitted."""


@dataclass(frozen=True)
class Sample:
    """A caption and the seed of its noise."""

    caption: str
    seed: int


@dataclass(frozen=True)
class Made:
    """Samples made in one go.

    Attributes:
        frames: (B, F, 3, H, W) or (B, 3, H, W) in [0, 1], float32.
        flops: of the denoiser, per sample.
    """

    frames: np.ndarray
    flops: tuple[float, ...]


class Model:
    """A shipped model, or a folder with another version of it.

    Args:
        options: how the pipeline is called: size, guidance, text length.
    """

    def __init__(self, name: str, pipe: Any, folder: Path, options: Mapping[str, Any]) -> None:
        self.name, self.pipe, self.folder, self.options = name, pipe, folder, options
        self.moving = "num_frames" in inspect.signature(type(pipe).__call__).parameters
        pipe.set_progress_bar_config(disable=True)

    @cached_property
    def checkpoint(self) -> str:
        """SHA-256 over the names and contents of all weight files."""
        total = hashlib.sha256()
        for path in sorted(self.folder.rglob("*.safetensors")):
            total.update(path.relative_to(self.folder).as_posix().encode())
            total.update(path.read_bytes())
        return total.hexdigest()

    @property
    def denoiser(self) -> torch.nn.Module:
        return _denoiser(self.pipe)

    def samples(self, which: str, count: int) -> list[Sample]:
        """The first `count` samples of the set `which`, with seeds of their own.

        Captions are held-out ones, for calibration such as the model was trained on.
        """
        first = SETS[which]
        rng = np.random.default_rng(first)
        split = "train" if which == "calibration" else "heldout"
        scenes = [sample_scene(rng, self.moving, split) for _ in range(count)]
        return [Sample(caption(scene), first + i) for i, scene in enumerate(scenes)]

    def make(self, setting: Setting, samples: Sequence[Sample]) -> Made:
        """Samples in one batch."""
        with ready(self.pipe, setting) as pipe, WorkCounter(_denoiser(pipe)) as work:
            frames = self.call(pipe, setting.steps, samples, "pt")
        flops = work.flops / len(samples)
        return Made(frames.float().cpu().numpy(), (flops,) * len(samples))

    def call(self, pipe: Any, steps: int, samples: Sequence[Sample], output: str) -> Any:
        """One call of the pipeline, as a user would call it."""
        device = self.denoiser.device
        result = pipe(
            prompt=[s.caption for s in samples],
            num_inference_steps=steps,
            generator=[torch.Generator(device).manual_seed(s.seed) for s in samples],
            output_type=output,
            **self.options,
        )
        return result.frames if self.moving else result.images


def _denoiser(pipe: Any) -> torch.nn.Module:
    found = getattr(pipe, "transformer", None)
    return pipe.unet if found is None else found
