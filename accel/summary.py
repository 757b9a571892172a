"""Shows an outcome in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .outcome import Outcome, Sample
from .report import Report

MARKS = {"computed": "█", "forecast": "░", "reused": "▒"}
STYLES = {"computed": "cyan", "forecast": "yellow", "reused": "green"}
STEPS_SHOWN = 60


def show(console: Console, outcome: Outcome, prompt: str, files: Mapping[str, Path]) -> None:
    """Print what was made, how fast, how close, and where it is."""
    parts: list[Any] = [Text(_setting(outcome), "dim"), "", _times(outcome)]
    if outcome.plain is not None:
        parts += ["", _closeness(outcome)]
    parts += ["", strip(outcome.report)]
    if not outcome.report.complete:
        parts.append(Text("the run was cut short", "yellow"))
    title = Text(prompt.strip(), "bold", overflow="ellipsis", no_wrap=True)
    console.print(Panel(Group(*parts), title=title, title_align="left", padding=(0, 1)))
    for name, path in files.items():
        console.print(f"  {name.replace('_', ' '):<13}", Text(str(path), "cyan"), soft_wrap=True)


def _setting(outcome: Outcome) -> str:
    call, model = outcome.call, outcome.model
    count, height, width, _ = outcome.accelerated.frames.shape
    steps = len({row.index for row in outcome.report.rows})
    parts = [
        f"{model.name} ({type(model.pipe).__name__})",
        f"{count} frames {width}×{height}" if outcome.accelerated.video else f"{width}×{height}",
        f"{steps} steps",
        f"guidance {call['guidance_scale']:g}" if "guidance_scale" in call else "",
        model.place,
    ]
    return " · ".join(p for p in parts if p) + f"\n{outcome.label}: {outcome.plan}"


def _times(outcome: Outcome) -> Table:
    table = Table.grid(padding=(0, 2))
    for side in ("left", "right", "right"):
        table.add_column(justify=side)
    table.add_row("", Text("whole call", "dim"), Text("loop", "dim"))
    if outcome.plain is not None:
        table.add_row("plain", *_seconds(outcome.plain))
    table.add_row(outcome.label, *_seconds(outcome.accelerated))
    if outcome.speedup is not None:
        loop = outcome.loop_speedup
        table.add_row(
            Text("speed-up", "bold green"),
            Text(f"{outcome.speedup:.2f}x", "bold green"),
            Text("" if loop is None else f"{loop:.2f}x", "green"),
        )
    return table


def _seconds(sample: Sample) -> tuple[str, str]:
    loop = sample.seconds_loop
    return f"{sample.seconds:.2f} s", "" if loop is None else f"{loop:.2f} s"


def _closeness(outcome: Outcome) -> Group:
    assert outcome.plain is not None
    shown = [f"PSNR {outcome.psnr:.1f} dB"]
    if outcome.ssim is not None:
        shown.append(f"SSIM {outcome.ssim:.3f}")
    before, after = outcome.plain.adherence, outcome.accelerated.adherence
    if before is not None and after is not None:
        shown.append(f"adherence {after:.0%} (plain {before:.0%})")
    note = "one pair of runs; the whole call includes text encoding and decoding"
    return Group("   ".join(shown), Text(note, "dim"))


def strip(report: Report) -> Group:
    """A line a branch with a mark a step, and what the marks mean."""
    grid = Table.grid(padding=(0, 2))
    for branch in report.branches:
        line = Text(overflow="fold")
        rows = [row for row in report.rows if row.branch == branch]
        for row in rows[:STEPS_SHOWN]:
            line.append(MARKS[row.action], STYLES[row.action])
        if len(rows) > STEPS_SHOWN:
            line.append(f" +{len(rows) - STEPS_SHOWN}", "dim")
        grid.add_row(branch, line)
    used = [a for a in MARKS if any(row.action == a for row in report.rows)]
    legend = Text("   ").join(Text(f"{MARKS[a]} {a}", STYLES[a]) for a in used)
    done = (
        f"computed {report.computed_fraction:.1%} of the {report.basis}, which alone is "
        f"{report.bound:.2f}x in the loop; {report.bytes_held / 2**20:.1f} MiB held"
    )
    return Group(grid, Padding(legend, (0, 0)), Text(done))
