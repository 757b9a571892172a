"""Tables and pictures of the samplers' errors."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from rich.console import Console

from benchmarks.cells import Cells
from benchmarks.page import markdown, provenance, terminal

GOAL = range(5, 21)
"""Budgets at which ours is to be lowest."""
GAUSSIAN, SPREAD = "gaussian", "gaussian-spread"
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
        row = found.setdefault(fields["grid"], {}).setdefault(fields["solver"], {})
        row |= {int(n): e for n, e in result["errors"].items() if e is not None}
        by[fields["solver"]] = fields["by"]
        if result["order"] is not None:
            orders[fields["solver"]] = result["order"]
    ordered = {g: {s: dict(sorted(r.items())) for s, r in found[g].items()} for g in found}
    return ordered, by, orders


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


INTRODUCTION = """# Samplers

Relative error of the result, |x - exact| / |exact|, by evaluations of the model; `*` is the least
of a column. Grids are put upon all solvers alike. Two are in no config. *fitted* are levels that
`accel calibrate` fits to runs of corrected Adams-Bashforth, and the others are run on these as they
are. *picked* are, for every solver and every number of evaluations, the best for that solver of 30
grids (12 shifts of a flow and 18 of Karras's rule), by its error on other noise than it is judged
on. Shipped models are run at 4 and at 25 to 50 evaluations on the grid model alone;
levels are fitted to 8 of their runs of 50 steps, of other captions.

"""
NOTES = {
    GAUSSIAN: """Data N(0, s^2), s from 0.03 to 5 over 64 channels, and a flow of shift 3: velocity
and exact solution are known. *Order* is taken from 99 to 199 evaluations on the grid uniform; that
of AB3 and of STORK is of their first step, which is Euler's and is not put right. SA-Solver of
order 2 adds a term for few steps that grows with the step in the log of signal to noise: with its
first level clamped anywhere from 0.995 to 1 - 1e-6 and its last from 1e-4 to 0.01, its error at 4
evaluations on the grid model stays above 4.

""",
    SPREAD: """Samplers that draw noise end elsewhere in every run; what can be wrong is the
distribution. Given is the relative distance of its standard deviations from those of the data. It
is exact, as all of these are linear in their noise; for a sampler without noise it would be the
number above.

""",
}


def write(cells: Cells, console: Console) -> None:
    """samplers.md and samplers-*.png beside the results, and the tables on the terminal."""
    data = dict.fromkeys(
        c["fields"]["data"] for c in cells.cells.values() if c["fields"]["part"] == "errors"
    )
    text = INTRODUCTION
    for name in data:
        found, by, orders = errors(cells, name)
        text += f"## {name}\n\n{NOTES.get(name, '')}![errors](samplers-{_slug(name)}.png)\n\n"
        for grid, rows in found.items():
            text += f"### All on the grid {grid}\n\n" + _table(rows, by, orders, console, grid)
        chosen = best(found)
        least = {s: {n: e for n, (e, _) in row.items()} for s, row in chosen.items()}
        text += "### Each on its best grid at each budget\n\n"
        text += _table(least, by, orders, console, "the best of each")
        if name != SPREAD:
            text += _verdicts(found, by)
        _picture(cells, found, least, by, _slug(name))
    cells.path.with_suffix(".md").write_text(text + _parallel(cells) + provenance(cells))


def _slug(data: str) -> str:
    """`data` in the name of a file: shapes-t2v-4 for "shapes-t2v, 4 samples"."""
    return data.removesuffix(" samples").replace(", ", "-")


def _parallel(cells: Cells) -> str:
    """Steps side by side, where they were measured."""
    of = [c for c in cells.cells.values() if c["fields"]["part"] == "parallel"]
    if not of:
        return ""
    head = ["method", "steps", "evaluations in a row", "evaluations", "near", "error"]
    head += ["error of flow Euler", "away from flow Euler"]
    lines = []
    for cell in of:
        fields, r = cell["fields"], cell["result"]
        numbers = [f"{r[k]:.2g}" for k in ("error", "error_plain", "away")]
        counts = [str(n) for n in (fields["steps"], r["rounds"], r["evaluations"])]
        lines.append([fields["method"], *counts, "yes" if r["near"] else "no", *numbers])
    return "## Steps of flow Euler side by side, on the Gaussian\n\n" + markdown(head, lines)


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


def _verdicts(found: Errors, by: dict[str, str]) -> str:
    """The goal, on one grid for all and with ever more freedom to choose another."""
    text = "### The goal: ours lowest at every budget from 5 to 20\n\n"
    free = [grid for grid in found if grid not in ("fitted", "picked")]
    for title, grids in (
        ("All on the grid model", ["model"]),
        ("Each on the best for it of the grids that need no fitting", free),
        ("All on the fitted levels", ["fitted"]),
        ("Each on the grid picked for it", ["picked"]),
        ("Each on the best of all these", list(found)),
    ):
        chosen = best({grid: found[grid] for grid in grids if grid in found})
        lines = _verdict(chosen, by)
        if lines:
            lost = [line[0] for line in lines if float(line[-1]) < 0.995]
            text += f"{title}: "
            text += f"not at {', '.join(lost)}.\n\n" if lost else "everywhere.\n\n"
            text += markdown(VERDICT, lines)
    return text


VERDICT = ("evaluations", "best of ours", "error", "best of diffusers", "error", "ratio")


def _verdict(chosen: dict[str, dict[int, tuple[float, str]]], by: dict[str, str]) -> list[Any]:
    """Of every budget of the goal the lowest error of ours and of diffusers, and the ratio."""
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
    return lines


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
