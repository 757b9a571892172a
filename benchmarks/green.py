"""No number while the test of what it times is red."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import Cells

ROOT = Path(__file__).resolve().parent.parent
TIMED = ("accel", "caching", "pipelines")
"""Folders whose sources are what is timed (training and the shipped models' data are not)."""


def sources(folders: Sequence[str] = TIMED) -> str:
    """A digest of the code that is timed, so that a result tells which code it is of."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).glob("*.py")):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def green(tests: Sequence[str], folder: Path, folders: Sequence[str] = TIMED) -> str:
    """Run the tests at these paths, unless they passed for the same sources; how many passed.

    What passed is kept in `folder`/green.json, by the sources in `folders`.

    Raises:
        SystemExit: one of them is missing or red; its output is shown.
    """
    cells = Cells(folder / "green.json")
    return cells.run(lambda: _run(tests), sources=sources(folders), tests=" ".join(tests))["passed"]


def _run(tests: Sequence[str]) -> dict[str, Any]:
    missing = [test for test in tests if not (ROOT / test).exists()]
    if missing:
        raise SystemExit(f"no test at {', '.join(missing)}, so there is no number")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "auto"]
    command += ["-p", "no:cacheprovider", *tests]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{result.stdout}{result.stderr}\nred, so there is no number")
    return {"passed": result.stdout.strip().splitlines()[-1]}
