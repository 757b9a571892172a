"""Settings judged and timed beside plain runs of as much work, and the table of both."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import page
from benchmarks.cells import Cells
from benchmarks.judge import Judge
from benchmarks.settings import Setting, plain

HEAD = (
    *("row", "by", "n", "work", "speed-up (95 %)", "PSNR dB", "SSIM", "adherence"),
    *("change (95 % bound)", "all right", "setting"),
)
COLUMNS = """*Work*: FLOPs of the denoiser over those of the plain run of as many steps.
*Speed-up*: seconds of a call without decoding, one sample on one thread, plain over accelerated,
turn about; with its 95 % interval. PSNR and SSIM compare decoded frames with that plain run;
adherence is the share of the caption's attributes that an exact checker finds right, its change
paired by sample, with the one-sided 95 % bound."""
console = Console(width=170)


def measure(
    judge: Judge, settings: Iterable[Setting], samples: int, turns: int, until: float
) -> None:
    """Judge and time every setting, then plain runs of as much work.

    Args:
        settings: drawn one by one, so that those that need calibration are made when it is time.
        turns: times that everything is timed; 0 leaves that out.
        until: of `time.monotonic`, s; nothing is begun after it.
    """
    work, known, settings = {}, [], iter(settings)
    while time.monotonic() <= until and (setting := next(settings, None)) is not None:
        console.log(f"{judge.model.name}, {judge.under}: {setting.row}")
        work[setting.row] = judge.evaluate(setting, 1.0, samples)["means"]["work"]
        known.append(setting)
    for count in sorted({max(round(judge.steps * share), 1) for share in work.values()}):
        if time.monotonic() > until:
            return
        known.append(plain(judge.sampler, count))
        console.log(f"{judge.model.name}, {judge.under}: {count} plain steps")
        judge.evaluate(known[-1], 1.0, samples)
    if turns and time.monotonic() < until:
        judge.time(known, 1.0, turns)


def rows(cells: Cells, model: str, under: str) -> Iterator[list[str]]:
    """Of one table, by work; of each setting the cell of most samples."""
    named = {"model": model, "under": under}
    mine = [c for c in cells.cells.values() if named.items() <= c["fields"].items()]
    times: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for cell in mine:
        fields = cell["fields"]
        if fields["set"] == "timing":
            times |= cell["result"]
        elif fields["set"] == "evaluation":
            key = f"{fields['row']}: {fields['setting']}"
            if key not in most or fields["samples"] >= most[key]["fields"]["samples"]:
                most[key] = cell
    for key, cell in sorted(most.items(), key=lambda one: -one[1]["result"]["means"]["work"]):
        fields, m = cell["fields"], cell["result"]["means"]
        own = times.get(key)
        speed = f"{own['speedup']:.2f} ({own['low']:.2f}–{own['high']:.2f})" if own else "–"
        yield [
            "fewer plain steps" if fields["by"] == "plain" else fields["row"],
            fields["by"],
            str(fields["samples"]),
            f"{m['work']:.1%}",
            speed,
            f"{m['psnr']:.2f}",
            f"{m['ssim']:.4f}",
            f"{m['share']:.2%}",
            f"{100 * m['adherence_change']:+.2f} ({100 * m['adherence_change_low']:+.2f})",
            f"{m['all_right']:.1%}",
            fields["setting"],
        ]


def write(cells: Cells, out: Path, introduction: str) -> None:
    """The tables on the terminal, and the page beside `out`."""
    text = introduction
    fields = [c["fields"] for c in cells.cells.values() if c["fields"].get("set") == "evaluation"]
    for model, under in dict.fromkeys((f["model"], f["under"]) for f in fields):
        lines = list(rows(cells, model, under))
        console.print(page.terminal(f"{model}, {under}", HEAD, lines))
        text += f"## {model}, {under}\n\n{page.markdown(HEAD, lines)}"
    if cells.path.exists():
        out.with_suffix(".md").write_text(text + page.provenance(cells))
