"""How fast is block-sparse attention on this card, beside the best dense attention there?

`python -m benchmarks.attention_gpu` needs a CUDA card and runs unattended. All of it ends after
`--minutes`; what failed, hung or was not begun is told on the page and tried in the next run, which
goes on from there. Writes results/attention_gpu.{json,md}. With TRITON_INTERPRET=1, `--device cpu`
and a small `--shape` it runs through on any machine, which tests the script and measures nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from accel.sparse_attn.kernels.triton_launch import interpreted
from benchmarks import attention_gpu_cells
from benchmarks.attention_gpu_cells import Job, Remembered, jobs
from benchmarks.attention_gpu_report import Told, fields, kind, of, title, write
from benchmarks.attention_ways import SHAPES, parse
from benchmarks.cells import Cells, name
from benchmarks.isolated import Answer, Isolated, Lost, NotReady, TooLong

RESULTS = Path(__file__).parent / "results" / "attention_gpu.json"
READY = 120.0
"""Seconds in which a process must come up: it imports torch and draws q, k and v."""
console = Console(stderr=True)


def measure(
    cells: Cells,
    device: str,
    shape: str,
    told: Told,
    *,
    until: float,
    end: float,
    limit: float,
    serve: Callable[..., Answer] = attention_gpu_cells.serve,
) -> None:
    """What is missing of a shape, in a process of its own, and a fresh one after a fault.

    Args:
        device: name of the card, or "cpu".
        told: why there is no result, for the page; such cells are left alone here.
        until: begins nothing later than that, on the monotonic clock; `end` stops what runs.
        limit: seconds for a measurement.
        serve: what answers in the other process, given shape and kind of device.
    """
    todo = {name(**(at := fields(device, shape, job))): (job, at) for job in planned(device, shape)}
    todo = {key: task for key, task in todo.items() if key not in cells and key not in told}
    process = Isolated(serve, shape, kind(device))
    try:
        for key, (job, at) in todo.items():
            if time.monotonic() > until:
                break
            try:
                process.ready(min(READY, end - time.monotonic()))
                start = time.monotonic()
                question = (tuple(job), tuned(cells, device, shape))
                result = process.ask(question, min(limit, end - start))
            except NotReady as lost:
                if time.monotonic() < end:
                    rest = todo.keys() - cells.cells.keys() - told.keys()
                    told |= dict.fromkeys(rest, str(lost))
                break
            except Lost as lost:
                late = isinstance(lost, TooLong) and time.monotonic() >= end
                result = {"failed": "stopped: no time was left" if late else str(lost)}
            if "failed" in result:
                told[key] = result["failed"]
            else:
                cells.run(lambda r=result: r, **at)
            seconds = f"{time.monotonic() - start:.1f} s"
            console.log(f"{shape}, {title(job)}: {told.get(key, seconds)}", highlight=False)
    finally:
        process.close()


def planned(device: str, shape: str) -> list[Job]:
    """All measurements of a shape, named or in numbers, on a device."""
    return jobs(parse(shape), kind(device))


def tuned(cells: Cells, device: str, shape: str) -> Remembered:
    """Tiles found so far, in this run or an earlier one."""
    found = of(cells, device, shape)
    return [entry for result in found.values() for entry in result.get("tuned", [])]


def main(
    shape: Annotated[list[str] | None, typer.Option(help="Which; all if none.")] = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu in Triton's interpreter.")] = "cuda",
    minutes: Annotated[float, typer.Option(help="Stop after that, whatever is under way.")] = 7,
    limit: Annotated[float, typer.Option(help="Seconds for a measurement, compiling too.")] = 60,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = RESULTS,
) -> None:
    """Measure what is missing, then write the tables and how the goals stand."""
    end = time.monotonic() + 60 * minutes
    if device not in ("cuda", "cpu"):
        raise SystemExit(f"unknown device {device!r}; known: cuda, cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA card is visible; --device cpu tests the script")
    if device == "cpu" and not interpreted():
        raise SystemExit("set TRITON_INTERPRET=1 for --device cpu")
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    names, cells, told = shape or list(SHAPES), Cells(out), Told()
    for one in names:
        parse(one)
    for shares in (True, False):  # what a shape leaves of its share goes to those that lack some
        for i, one in enumerate(names):
            now = time.monotonic()
            until = now + (end - now) / (len(names) - i) if shares else end
            measure(cells, where, one, told, until=until, end=end, limit=limit)
            stand = write(cells, where, names, told)
    console.print(f"{stand}\n{cells.path.with_suffix('.md')}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
