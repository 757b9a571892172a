"""How long it takes to gather the tokens of a partial step: one by one, or by contiguous slices.

On one thread, beside one linear layer over the gathered tokens. Run as
`python benchmarks/region_reading.py`; it takes a minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks import page  # noqa: E402
from benchmarks.cells import Cells  # noqa: E402
from benchmarks.fidelity import RESULTS  # noqa: E402
from benchmarks.rounds import rounds  # noqa: E402

TOKENS, WIDTH, SHARE = 4096, 1536, 0.25
SIDE_BY_SIDE = (1, 2, 4, 16, 64)
HEAD = ("tokens side by side", "by token", "by slices", "slices / tokens (95 %)", "one linear")


def chosen(together: int, seed: int = 0) -> Tensor:
    """First tokens, ascending, of runs of `together` tokens; a `SHARE` of them all."""
    draw = torch.Generator().manual_seed(seed)
    count = TOKENS // together
    return torch.randperm(count, generator=draw)[: int(SHARE * count)].sort().values * together


def by_token(values: Tensor, starts: Tensor, together: int) -> Callable[[], Tensor]:
    """Gathers (1, k, D) by an index of every token, as `RegionAdaptive` does."""
    index = (starts[:, None] + torch.arange(together)).flatten()
    return lambda: values.index_select(1, index)


def by_slices(values: Tensor, starts: Tensor, together: int) -> Callable[[], Tensor]:
    """Gathers the same by a slice of every run, whose places must be known to the host."""
    places = starts.tolist()
    return lambda: torch.cat([values[:, s : s + together] for s in places], dim=1)


def seconds(call: Callable[[], Any], repeats: int) -> Callable[[], float]:
    """`repeats` calls, timed: processor seconds of one."""

    def timed() -> float:
        start = time.process_time()
        for _ in range(repeats):
            call()
        return (time.process_time() - start) / repeats

    return timed


def measure(together: int, least: int, repeats: int = 20) -> dict[str, Any]:
    """Both ways, and a linear layer, turn about."""
    values = torch.randn(1, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    starts = chosen(together)
    single, slices = by_token(values, starts, together), by_slices(values, starts, together)
    layer, gathered = torch.nn.Linear(WIDTH, WIDTH), single()
    with torch.no_grad():
        taken = rounds(
            seconds(single, repeats),
            {"slices": seconds(slices, repeats), "linear": seconds(lambda: layer(gathered), 1)},
            least=least,
        )
    ratio = taken["slices"].interval()
    return {
        "token_ms": 1000 * float(np.median(taken["slices"].first_s)),
        "slices_ms": 1000 * float(np.median(taken["slices"].second_s)),
        "linear_ms": 1000 * float(np.median(taken["linear"].second_s)),
        "ratio": ratio.estimate,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "turns": least,
    }


def row(together: int, found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    times = [f"{found[f'{name}_ms']:.2f} ms" for name in ("token", "slices", "linear")]
    ratio = f"{found['ratio']:.2f} ({found['ratio_low']:.2f}–{found['ratio_high']:.2f})"
    return [str(together), *times[:2], ratio, times[2]]


def main(
    turns: Annotated[int, typer.Option(min=1, help="Times that everything is timed.")] = 15,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = (
        RESULTS / "region_reading.json"
    ),
) -> None:
    """Time what is missing, then write the table."""
    torch.set_num_threads(1)
    cells = Cells(out)
    lines = [
        row(n, cells.run(lambda n=n: measure(n, turns), together=n, tokens=TOKENS, width=WIDTH))
        for n in SIDE_BY_SIDE
    ]
    Console(width=120).print(page.terminal("Gathering tokens", HEAD, lines))
    out.with_suffix(".md").write_text(
        "# Gathering the tokens of a partial step\n\nMade by `python benchmarks/region_reading.py`."
        f" {SHARE:.0%} of {TOKENS:,} tokens of width {WIDTH:,} (float32), processor time on one "
        "thread, median; *one linear* is a square layer over the gathered tokens.\n\n"
        + page.markdown(HEAD, lines)
        + page.provenance(cells)
    )


if __name__ == "__main__":
    typer.run(main)
