"""Tables and pictures of the samplers' errors."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console

from benchmarks.cells import Cells
from benchmarks.page import markdown, provenance, terminal

GOAL = range(5, 21)
"""Budgets at which ours is to be lowest."""
TICKS = (4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50)
Errors = dict[str, dict[str, dict[int, float]]]


def errors(cells: Cells, data: str) -> tuple[Errors, dict[str, str], dict[str, float | None]]:
    """Errors by grid, solver and evaluations; whose each solver is; empirical orders."""
    found: Errors = {}
    by: dict[str, str] = {}
    orders: dict[str, float | None] = {}
    for cell in cells.cells.values():
        fields, result = cell["fields"], cell["result"]
        if fields["part"] != "errors" or fields["data"] != data:
            continue
        kept = {int(n): e for n, e in result["errors"].items() if e is not None}
        found.setdefault(fields["grid"], {})[fields["solver"]] = kept
        by[fields["solver"]] = fields["by"]
        if result["order"] is not None:
            orders[fields["solver"]] = result["order"]
    return found, by, orders


def best(found: Errors) -> dict[str, dict[int, tuple[float, str]]]:
    """Of each solver and budget the least error over all grids, and the grid."""
    result: dict[str, dict[int, tuple[float, str]]] = {}
    for grid, rows in found.items():
        for solver, row in rows.items():
            for n, error in row.items():
                known = result.setdefault(solver, {})
                if n not in known or error < known[n][0]:
                    known[n] = error, grid
    return result


def write(cells: Cells, console: Console) -> None:
    """samplers.md and samplers-*.png beside the results, and the tables on the terminal."""
    data = dict.fromkeys(
        c["fields"]["data"] for c in cells.cells.values() if c["fields"]["part"] == "errors"
    )
    text = (
        "# Samplers\n\nRelative error of the result, |x - exact| / |exact|, by evaluations of the "
        "model; `*` is the least of a column.\n\n"
    )
    for name in data:
        found, by, orders = errors(cells, name)
        text += f"## {name}\n\n![errors](samplers-{name.split(',')[0]}.png)\n\n"
        for grid, rows in found.items():
            text += f"### All on the grid {grid}\n\n" + _table(rows, by, orders, console, grid)
        chosen = best(found)
        least = {s: {n: e for n, (e, _) in row.items()} for s, row in chosen.items()}
        text += "### Each on its best grid at each budget\n\n"
        text += _table(least, by, orders, console, "the best of each") + _verdict(chosen, by)
        _picture(cells, found, least, by, name.split(",")[0])
    cells.path.with_suffix(".md").write_text(text + provenance(cells))


def _table(
    rows: dict[str, dict[int, float]],
    by: dict[str, str],
    orders: dict[str, float | None],
    console: Console,
    title: str,
) -> str:
    budgets = sorted({n for row in rows.values() for n in row})
    least = {n: min(row[n] for row in rows.values() if n in row) for n in budgets}
    head = ["solver", "by", *map(str, budgets), *(["order"] if orders else [])]
    lines = []
    for solver, row in rows.items():
        shown = [
            "" if n not in row else f"{row[n]:.2g}{'*' if row[n] == least[n] else ''}"
            for n in budgets
        ]
        order = orders.get(solver)
        last = [] if not orders else ["" if order is None else f"{order:.2f}"]
        lines.append([solver, by[solver], *shown, *last])
    console.print(terminal(title, head, lines))
    return markdown(head, lines)


def _verdict(chosen: dict[str, dict[int, tuple[float, str]]], by: dict[str, str]) -> str:
    """Whether ours is lowest at every budget of the goal, and by how much."""
    head = ["evaluations", "best of ours", "error", "best of diffusers", "error", "ratio"]
    lines = []
    for n in sorted({n for row in chosen.values() for n in row if n in GOAL}):
        line: list[Any] = [str(n)]
        values = []
        for whose in ("ours", "diffusers"):
            rows = {s: row[n] for s, row in chosen.items() if by[s] == whose and n in row}
            if not rows:
                break
            solver = min(rows, key=lambda s: rows[s][0])
            values.append(rows[solver][0])
            line += [f"{solver}, {rows[solver][1]}", f"{rows[solver][0]:.2g}"]
        else:
            lines.append([*line, f"{values[1] / values[0]:.2f}"])
    return "### The goal: ours lowest at every budget from 5 to 20\n\n" + markdown(head, lines)


def _picture(cells: Cells, found: Errors, least: Any, by: dict[str, str], name: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(15, 6), sharey=True)
    grid = next(iter(found))
    for axis, rows, title in (
        (axes[0], found[grid], f"all on the grid {grid}"),
        (axes[1], least, "each on its best grid"),
    ):
        for i, (solver, row) in enumerate(rows.items()):
            ours = by[solver] == "ours"
            axis.plot(
                list(row),
                list(row.values()),
                "-o" if ours else "--x",
                color=plt.get_cmap("tab20")(i % 20),
                label=solver,
                markersize=4,
                linewidth=1.6 if ours else 1.1,
            )
        axis.set(xscale="log", yscale="log", title=f"{name}: {title}", xlabel="evaluations")
        ticks = [n for n in TICKS if any(n in row for row in rows.values())]
        axis.set_xticks(ticks, [str(n) for n in ticks], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("relative error")
    axes[1].legend(fontsize=7, bbox_to_anchor=(1.01, 1), loc="upper left", title="solid: ours")
    figure.tight_layout()
    figure.savefig(cells.path.with_name(f"samplers-{name}.png"), dpi=90)
    plt.close(figure)
