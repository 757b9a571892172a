"""How much faster than dense attention is block-sparse attention on one thread of a CPU?

`python -m benchmarks.attention_cpu` goes on where it stopped and writes
results/attention_cpu.{json,md}. Dense attention (`scaled_dot_product_attention`) and one kernel
take turns in one process; ratios are taken pair by pair. `--again` times with more pairs what
is not sure to meet or miss its goal.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.layout import BlockLayout, uniform
from benchmarks import page
from benchmarks.attention_ways import error, random_layout
from benchmarks.cells import Cells
from benchmarks.paired import paired

RESULTS = Path(__file__).parent / "results" / "attention_cpu.json"
TOKENS = (4096, 8192, 16384)
DENSITIES = (1.0, 0.5, 0.25, 0.1)
HEADS, HEAD, BLOCK = 2, 64, 128
GOAL = 0.9
PAIRS, MORE_PAIRS = 15, 90
console = Console(width=140)


def band_layout(q: Tensor, density: float) -> BlockLayout:
    """Uniform blocks; every row attends to the nearest ones, the same in all heads."""
    batch, tokens, heads, _ = q.shape
    starts = uniform(tokens, BLOCK)
    count = starts.shape[-1] - 1
    kept = max(1, round(density * count))
    row = torch.arange(count)
    first = (row - kept // 2).clamp(0, count - kept)[:, None]
    map = (row >= first) & (row < first + kept)
    return BlockLayout.from_map(
        map.expand(batch, heads, -1, -1), starts, starts, BLOCK, BLOCK, seq_q=tokens, seq_k=tokens
    )


def kernel(name: str, layout: BlockLayout) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Gather as it is used; flex compiled, which on a CPU returns no log-sum."""
    if name == "gather":
        return lambda q, k, v: KERNELS["gather"].attend(q, k, v, layout, HEAD**-0.5)[0]
    from torch.nn.attention.flex_attention import flex_attention

    call = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    mask = layout.to_flex()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = (x.transpose(1, 2) for x in (q, k, v))
        out: Tensor = call(*heads, block_mask=mask).transpose(1, 2)
        return out

    return attend


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)


def measure(
    name: str, tokens: int, density: float, map: str, limit_s: float, pairs: int = PAIRS
) -> dict[str, Any]:
    """Processor time of `pairs` of dense and sparse calls, or until `limit_s` is over.

    Raises:
        AssertionError: the kernel is wrong, and so would be timed doing something else.
    """
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, HEADS, HEAD) for _ in range(3))
    layout = random_layout(q, density, BLOCK) if map == "random" else band_layout(q, density)
    attend = kernel(name, layout)
    off = error(attend(q, k, v), q, k, v, layout)
    assert off < 1e-5, f"{name} is off by {off:.1e}"
    load = os.getloadavg()[0]
    timings = paired(
        lambda: dense(q, k, v),
        lambda: attend(q, k, v),
        pairs=pairs,
        limit_s=limit_s,
        clock=time.process_time,
    )
    return {**timings.as_dict(), "density": float(layout.density()), "error": off, "load": load}


HEADINGS = (
    "tokens",
    "map",
    "kernel",
    "computed",
    "dense",
    "faster",
    "95 %",
    "of 1/density",
    "goal",
)


def newest(cells: Cells) -> list[dict[str, Any]]:
    """The last cell of each measurement, in the order they were first made."""
    found = {}
    for cell in cells.cells.values():
        at = cell["fields"]
        found[at["tokens"], at["kernel"], at["map"], at["density"]] = cell
    return [*found.values()]


def goal(result: dict[str, Any]) -> tuple[float, str] | None:
    """How many times faster than dense it should be, and `met`, `missed` or `not sure`.

    By the 95 % interval; None for a density that has no goal.
    """
    share = result["density"]
    if share > 0.26 and share != 1.0:
        return None
    wanted = 1.0 if share == 1.0 else GOAL / share
    low, high = 1 / result["ratio_high"], 1 / result["ratio_low"]
    return wanted, "met" if low >= wanted else "missed" if high < wanted else "not sure"


def rows(cells: Cells) -> list[list[str]]:
    found = []
    for cell in newest(cells):
        fields, result = cell["fields"], cell["result"]
        share, judged = result["density"], goal(result)
        faster, low, high = (1 / result[key] for key in ("ratio", "ratio_high", "ratio_low"))
        found.append(
            [
                f"{fields['tokens']:,}",
                fields["map"],
                fields["kernel"],
                f"{100 * share:.1f} %",
                f"{1e3 * result['first_s']:.0f} ms",
                f"{faster:.2f}x",
                f"{low:.2f}–{high:.2f}, {result['pairs']} pairs",
                f"{100 * faster * share:.0f} %",
                f"≥ {judged[0]:.2f}x: {judged[1]}" if judged else "",
            ]
        )
    return found


def write(cells: Cells) -> None:
    """The table on the terminal and beside the results."""
    if not cells.cells:
        return
    shown = rows(cells)
    console.print(page.terminal("attention on one thread", HEADINGS, shown))
    loads = [cell["result"]["load"] for cell in cells.cells.values()]
    text = (
        "# Block-sparse attention on one thread of a CPU\n\n"
        f"float32, {HEADS} heads of {HEAD}, blocks of {BLOCK}. Dense attention "
        "(`scaled_dot_product_attention`) and the kernel take turns in one process; times are "
        "processor time, ratios medians over pairs with their 95 % bootstrap interval. Maps: as "
        "many blocks in every row, at random and in every head others, or the nearest ones, as "
        "patterns that know video mostly choose. Layouts are built before, as in a model at most "
        f"steps. *Of 1/density*: the share of the ideal; the goal is {100 * GOAL:.0f} % of it at "
        "densities up to 0.25, and to be no slower at 1. More than all of it is possible: `gather` "
        "multiplies with oneDNN, dense attention with MKL, which on this AMD processor reached "
        "half its rate (100 against 200 GFLOP/s). Rows of more than "
        f"{PAIRS} pairs were not sure to meet or miss their goal before and were timed again. "
        "Other work kept the machine busy meanwhile, see the load, so the ratios count and the "
        "times do not.\n\n"
    )
    text += page.markdown(HEADINGS, shown) + page.provenance(cells)
    text += f"- load average of the machine: {min(loads):.1f} to {max(loads):.1f}\n"
    cells.path.with_suffix(".md").write_text(text)


def main(
    tokens: Annotated[list[int] | None, typer.Option(help="Which; all if none.")] = None,
    density: Annotated[list[float] | None, typer.Option(help="Which; all if none.")] = None,
    kernels: Annotated[list[str] | None, typer.Option(help="gather, flex; both if none.")] = None,
    map: Annotated[list[str] | None, typer.Option(help="random, band; both if none.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds of processor time a cell.")] = 20,
    again: Annotated[bool, typer.Option(help="Also time anew what is not sure.")] = False,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = RESULTS,
) -> None:
    """Measure what is missing, then write the table."""
    torch.set_num_threads(1)
    cells = Cells(out)
    wanted = [
        {"tokens": length, "kernel": name, "map": kind, "density": share}
        for length in tokens or TOKENS
        for name in kernels or ("gather", "flex")
        for kind in map or ("random", "band")
        for share in density or DENSITIES
    ]

    def timed(at: dict[str, Any], pairs: int) -> dict[str, Any]:
        return measure(at["kernel"], at["tokens"], at["density"], at["map"], limit, pairs)

    for at in wanted:
        cells.run(functools.partial(timed, at, PAIRS), **at)
    for cell in newest(cells) if again else ():
        at = {field: cell["fields"][field] for field in ("tokens", "kernel", "map", "density")}
        judged = goal(cell["result"])
        if at in wanted and judged and judged[1] == "not sure":
            number = 1 + cell["fields"].get("again", 0)
            cells.run(functools.partial(timed, at, MORE_PAIRS), **at, again=number)
    write(cells)


if __name__ == "__main__":
    typer.run(main)
