"""The table of overhead.py."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from benchmarks import page
from benchmarks.cells import Cells
from benchmarks.ways import Way, fitting

HALF_WIDTH = 0.003
GOALS = {"10 ms": 1.03, "30 ms": 1.01}
NULL = "plain again"
console = Console(width=150)


def key(way: Way) -> str:
    return f"{way.by}: {way.name}"


COMPARED = ("model", "by", "method", "computed / plain", "95 %", "turns", "by the wall")
HEAD = (*COMPARED, "skipped step", "goal")


def timed(cells: Cells) -> list[dict[str, Any]]:
    """The cells that hold times; others hold what was needed for them."""
    return [c for c in cells.cells.values() if c["fields"]["kind"] == "timed"]


def newest(cells: Cells, cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ways of a timed cell; of those that were timed again, what was found then."""
    found = dict(cell["result"]["ways"])
    for other in cells.cells.values():
        fields = other["fields"]
        if (fields["kind"], fields["model"]) == ("again", cell["fields"]["model"]):
            way = fields["way"]
            found[way] = {**found[way], **other["result"]["ways"][way]}
    return found


def rows(cells: Cells) -> list[list[str]]:
    """Of the table: a model's plain step first, then the methods."""
    found = []
    goals = {key(w) for unet in (False, True) for w in fitting(unet) if w.goal}
    for cell in timed(cells):
        model, result = cell["fields"]["model"], cell["result"]
        plain, loop = 1e3 * result["plain"]["cpu_s"], 1e3 * result["loop"]["cpu_s"]
        named = f"plain step {plain:.1f} ms"
        found.append([model, "", named, "1", "", "", "1", f"{loop:.2f} ms", ""])
        most = next((g for size, g in GOALS.items() if size in model), None)
        ways = newest(cells, cell)
        for name, way in ways.items():
            by, _, method = name.rpartition(": ")
            verdict, turn = "", "rounds" if cell["fields"]["together"] else "pairs"
            if most is not None and name in goals:
                verdict = f"≤ {most}: {judge(way, most, abs(ways[NULL]['ratio'] - 1))}"
            found.append(
                [
                    model,
                    by,
                    method,
                    f"{way['ratio']:.4f}",
                    f"{way['ratio_low']:.4f}–{way['ratio_high']:.4f}",
                    f"{way['pairs']} {turn}",
                    f"{way['wall_ratio']:.3f}",
                    f"{1e3 * way['skipped_s']:.2f} ms" if "skipped_s" in way else "",
                    verdict,
                ]
            )
    return found


def judge(way: dict[str, Any], most: float, off: float) -> str:
    """Whether a ratio is at most `most`, where plain against plain is `off` from 1."""
    if way["ratio_high"] + off <= most:
        return "met"
    return "missed" if way["ratio_low"] - off > most else "not sure"


INTRODUCTION = f"""# What the machinery costs

Whole steps of real pipelines' loops (guidance, scheduler and callback included; Wan makes two calls
a step): the plain pipeline and one method (*pairs*), or all of them (*rounds*, in which each cools
the others' caches), take turns, one step each, in one process, in changing order. *Computed /
plain*: the median over turns of the time of a step that is computed, with state updates on, over
the plain one of its turn; the 95 % bootstrap interval of that median; turns until its half-width is
at most {HALF_WIDTH} or the time was over (what was not sure then was timed again). Times are
processor time of the one thread, which on a quiet machine is the wall's; the ratio *by the wall*
stands beside it and shows what else was running. *plain again* is the plain pipeline against
itself: what the measurement cannot tell from 1. *Skipped step*: the median time of a skipped step;
on the plain line, of a step whose denoiser returns at once, the part that no method can save.
*Goal*: met or missed where the whole interval, widened by what plain against plain is off from 1,
is on one side of it. The models beside the shipped ones have 16 random blocks.

"""


def write(cells: Cells) -> None:
    """The table on the terminal and beside the results, if there are any."""
    if not timed(cells):
        return
    shown = rows(cells)
    console.print(page.terminal("overhead", HEAD, shown))
    loads = ", ".join(f"{c['result']['load']:.1f}" for c in timed(cells))
    text = INTRODUCTION + page.markdown(HEAD, shown) + page.provenance(cells)
    text += f"- load average of the machine before each model: {loads}\n"
    cells.path.with_suffix(".md").write_text(text)
