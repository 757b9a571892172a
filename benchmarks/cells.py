"""Where a benchmark keeps its results: a JSON file of cells, each run once and then kept.

An interrupted benchmark goes on where it stopped. Every cell says on what and with which versions,
threads and seed it was measured.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import accel

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "cache-dit", "DeepCache")


class Cells:
    """A file of finished cells: `{"environments": […], "cells": {key: {…}}}`.

    A new environment is added when hardware, versions, threads or seed are not those of an earlier
    one; a cell names its environment by index.
    """

    def __init__(self, path: str | Path, *, seed: int = 0, beside: Sequence[Path] = ()) -> None:
        """Reads `path` if it is there. `ValueError` if it is not such a file.

        Args:
            beside: files of other benchmarks whose cells need not be run again; never written.
        """
        self.path = Path(path)
        self._beside = [_read(other)["cells"] for other in beside if other.exists()]
        self._environment = environment(seed)
        self._content: dict[str, Any] = {"environments": [], "cells": {}}
        if self.path.exists():
            self._content = _read(self.path)

    @property
    def cells(self) -> dict[str, dict[str, Any]]:
        """Finished cells in the order they were first run, each with its `result`."""
        return self._content["cells"]

    def finished(self) -> Iterator[dict[str, Any]]:
        """Cells of this file and of those beside it."""
        for known in (self.cells, *self._beside):
            yield from known.values()

    def __contains__(self, key: str) -> bool:
        return key in self.cells

    def run(self, compute: Callable[[], dict[str, Any]], **fields: Any) -> dict[str, Any]:
        """The result of the cell of these fields, from the file or else from `compute()`.

        The file is written once the cell is done; if `compute` raises, the file stays as it was.
        """
        key = name(**fields)
        for known in (self.cells, *self._beside):
            if key in known:
                return known[key]["result"]
        start = time.perf_counter()
        result = compute()
        known = self._content["environments"]
        cell = {
            "fields": fields,
            "result": result,
            "environment": len(known),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - start, 3),
        }
        environments = known
        if self._environment in known:
            cell["environment"] = known.index(self._environment)
        else:
            environments = [*known, self._environment]
        content = {"environments": environments, "cells": {**self.cells, key: cell}}
        _write(self.path, content)
        self._content = _read(self.path)
        return self.cells[key]["result"]


def name(**fields: Any) -> str:
    """The key of a cell: `model=wan method=TaylorSeer interval=3`, in the order given."""
    if not fields:
        raise ValueError("a cell needs at least one field to be told by, e.g. model='wan'")
    return " ".join(f"{field}={value}" for field, value in fields.items())


def environment(seed: int) -> dict[str, Any]:
    """Hardware, versions, thread count and seed of this process."""
    versions = {"python": platform.python_version(), "accel": accel.__version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "system": platform.system(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _cpu() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); move it away to begin anew") from None
    if not isinstance(content, dict) or content.keys() != {"environments", "cells"}:
        raise ValueError(f"{path} is no file of benchmark cells; give another name or move it away")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """All or nothing: a neighbour file takes the place of the old one once it is whole."""
    text = json.dumps(content, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
