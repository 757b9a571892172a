"""Plain samples kept on disk, so that a benchmark which goes on does not make them again."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.shapes import Model, Sample


class References:
    """The plain 50-step samples of one model by one solver; a file each.

    Args:
        folder: where they are kept; below it every checkpoint, solver and way of calling has
            its own.
        make: makes the frames of samples that are missing.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        sampler: str,
        make: Callable[[Sequence[Sample]], np.ndarray],
        chunk: int = 8,
    ) -> None:
        called = zlib.crc32(json.dumps(dict(model.options), sort_keys=True).encode())
        name = f"{model.name}-{model.checkpoint[:12]}-{sampler}-{called:08x}"
        self.folder, self._make, self._chunk = folder / name, make, chunk

    def path(self, sample: Sample) -> Path:
        return self.folder / f"{sample.seed}-{zlib.crc32(sample.caption.encode()):08x}.npy"

    def frames(self, samples: Sequence[Sample]) -> np.ndarray:
        """Frames of `samples` in order, made and kept where they were missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [s for s in samples if not self.path(s).exists()]
        for start in range(0, len(missing), self._chunk):
            part = missing[start : start + self._chunk]
            for sample, frames in zip(part, self._make(part), strict=True):
                partial = self.path(sample).with_suffix(f".{os.getpid()}.partial")
                with partial.open("wb") as file:
                    np.save(file, frames)
                partial.replace(self.path(sample))
        return np.stack([np.load(self.path(sample)) for sample in samples])
