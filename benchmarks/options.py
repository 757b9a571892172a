"""Options that the benchmarks on shipped models share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CACHE = Path.home() / ".cache" / "accel-benchmarks" / "fidelity"

Models = Annotated[list[str] | None, typer.Option("--model", help="Which; all that ship if none.")]
Folders = Annotated[
    list[str] | None, typer.Option("--folder", help="NAME=PATH: another version of a model.")
]
Both = Annotated[list[str] | None, typer.Option("--model", help="Which; both if none.")]
Rows = Annotated[list[str] | None, typer.Option(help="Rows; all if none.")]
Batch = Annotated[int, typer.Option(help="Samples made in one go.")]
Tests = Annotated[bool, typer.Option("--tests/--skip-tests", help="While developing.")]
ReportOnly = Annotated[bool, typer.Option(help="Only write tables and pictures.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 runs in this one.")]
Minutes = Annotated[float, typer.Option(help="Begin nothing after this long.")]
References = Annotated[Path, typer.Option(help="Where plain samples are kept.")]


def places(folders: list[str] | None) -> dict[str, str]:
    """Paths by name from NAME=PATH."""
    return dict(pair.split("=", 1) for pair in folders or [])
