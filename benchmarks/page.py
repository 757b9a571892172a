"""A table on the terminal and the same one in markdown, and where its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.table import Table

from benchmarks.cells import Cells


def terminal(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """For a rich console; the first column stays whole, ours are bold."""
    result = Table(title=title, header_style="bold")
    for name in head:
        result.add_column(name)
    for row in rows:
        result.add_row(*row, style="bold" if "ours" in row else "")
    return result


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table's lines, ending with an empty one."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def provenance(cells: Cells) -> str:
    """Hardware, versions, threads, seed and dates of the results, and the code they are of."""
    text = "## Measured on\n\n"
    for i, e in enumerate(json.loads(cells.path.read_text())["environments"]):
        of = [c for c in cells.cells.values() if c["environment"] == i]
        if not of:
            continue
        versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
        digests = sorted({c["fields"]["sources"] for c in of if "sources" in c["fields"]})
        days = sorted({c["date"] for c in of})
        passed = sorted({c["fields"]["tests"] for c in of if "tests" in c["fields"]})
        text += (
            f"- {e['cpu']}, {e['cores']} cores, GPU {e['gpu'] or 'none'}, {e['system']}; "
            f"{e['threads']} thread; seed {e['seed']}; {versions}; {days[0]} to {days[-1]}"
        )
        text += f"; digest of the timed sources {', '.join(digests)}" if digests else ""
        text += f"; tests before: {', '.join(passed)}\n" if passed else "\n"
    return text
