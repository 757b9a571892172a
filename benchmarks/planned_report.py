"""The plan benchmark's cells as tables on the terminal and a page, with a picture a model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from accel.pipelines import tiny
from benchmarks.cells import Cells
from benchmarks.conditions import CONDITIONS
from benchmarks.fidelity_report import HEAD, Row, last_checkpoint, texts
from benchmarks.page import markdown, provenance, terminal
from benchmarks.planned_cells import ROWS, SAMPLES, SIDES
from benchmarks.planned_picture import draw
from benchmarks.planned_rows import newest, rows
from benchmarks.settings import OWN
from benchmarks.sweep import SKIPPED, STEPS

KINDS = ("the best peer", "the best plain solver", "the best other method of ours")
NODES = re.compile(r"Planned\(nodes=\(([^)]*)")
Lines = list[Sequence[str]]


def write(cells: Cells, out: Path) -> None:
    """Print every table, write the page and the pictures beside `out`."""
    console, page = Console(width=170), [INTRODUCTION]
    notes = out.with_suffix(".notes.md")
    if notes.exists():
        page.append(notes.read_text())
    for model in tiny.NAMES:
        checkpoint = last_checkpoint(cells, model)
        if checkpoint is None:
            continue
        side = f", at {SIDES[model]}×{SIDES[model]} pixels" if model in SIDES else ""
        page.append(f"## {model}\n\nCheckpoint sha256 `{checkpoint}…`{side}.\n")
        picture = out.with_name(f"{out.stem}-{model}.png")
        draw(cells, model, picture)
        page.append(f"![PSNR by computed steps]({picture.name})\n")
        for title, head, lines in tables(cells, model):
            console.print(terminal(f"{model}: {title}", head, lines))
            page.append(f"### {title}\n\n{markdown(head, lines)}")
    if cells.path.exists():
        page.append(provenance(cells))
    out.with_suffix(".md").write_text("\n".join(page))


def tables(cells: Cells, model: str) -> Iterator[tuple[str, Sequence[str], Lines]]:
    """Title, head and lines of every table that there is something for."""
    for sampler in (OWN, "euler"):
        solver = "the solver it ships with" if sampler == OWN else f"flow {sampler}"
        for steps in (STEPS, 28):
            under = "" if steps == STEPS else f"{steps} steps"
            judged = rows(cells, model, sampler, under=under)
            if not judged:
                continue
            title = f"{steps} steps of {solver}"
            yield f"{title}: gains", GAINS, gains(judged, steps)
            named = [_texts(row, steps) for row in judged]
            yield title, ("computed", *HEAD[1:]), named
    found = list(ageing(cells, model))
    if found:
        yield "How plans age", ("under", "computed", "plan", "n", "PSNR dB", "SSIM", "work"), found
    found = [tuple(str(v) for v in line) for line in costs(cells, model)]
    if found:
        yield "Calibrations", COSTS, found


def _texts(row: Row, steps: int) -> Sequence[str]:
    """A row's entries; of a plan only its nodes."""
    found = list(texts(row))
    found[0] = f"{computed(row, steps)} of {steps}"
    if nodes := NODES.match(row.setting):
        found[3] = nodes[1].replace(",", "").rstrip("…")
    return found


def computed(row: Row, steps: int) -> int:
    """The budget of a row."""
    return round(steps / row.ratio)


EFFORTS = {row: row.removeprefix("Planned, ") for row in ROWS.values() if row != ROWS["normal"]}
GAINS = ("computed", "Planned dB", "work", *(f"over {kind}" for kind in KINDS), *EFFORTS.values())


def gains(judged: Sequence[Row], steps: int) -> Lines:
    """By how much the plan is nearer than the best of each kind, on all samples both have.

    Which is the best is told by the samples that all of the kind have. Then what plans of the other
    efforts gain over it.
    """
    lines: Lines = []
    for ratio in sorted({row.ratio for row in judged}):
        here = [row for row in judged if row.ratio == ratio]
        own = next((row for row in here if row.row == ROWS["normal"]), None)
        if own is None:
            continue
        mean = f"{np.mean(own.psnr):.2f} ± {own.error:.2f}"
        others = {
            KINDS[0]: [r for r in here if r.by not in ("ours", "plain")],
            KINDS[1]: [r for r in here if r.by == "plain"],
            KINDS[2]: [r for r in here if r.by == "ours" and not r.row.startswith("Planned")],
        }
        said = [_gain(own, others[kind]) for kind in KINDS]
        more = {row.row: row for row in here}
        said += [_gain(more[name], [own]) if name in more else "–" for name in EFFORTS]
        work = f"{own.means['work']:.3f}"
        lines.append((f"{computed(own, steps)} of {steps}", mean, work, *said))
    return lines


def _gain(own: Row, others: Sequence[Row]) -> str:
    """Mean paired difference with its standard error, and over which."""
    if not others:
        return "–"
    shared = min(len(own.psnr), *(len(r.psnr) for r in others))
    best = max(others, key=lambda r: float(np.mean(r.psnr[:shared])))
    shared = min(len(own.psnr), len(best.psnr))
    pairs = np.array(own.psnr[:shared]) - np.array(best.psnr[:shared])
    error = pairs.std(ddof=1) / np.sqrt(shared) if shared > 1 else float("nan")
    over = "" if best.row == ROWS["normal"] else f" ({best.row})"
    mean = round(float(pairs.mean()), 2) + 0.0  # no gain is no loss either: never "-0.00"
    return f"{mean:+.2f} ± {error:.2f}{over}"


def ageing(cells: Cells, model: str) -> Iterator[Sequence[str]]:
    """Plans where they were made, and under every condition."""
    made = [r for r in rows(cells, model, OWN) if r.row in (ROWS["normal"], *_counted(cells))]
    for condition in CONDITIONS:
        under = condition.name
        for row in rows(cells, model, OWN, under=under):
            yield _aged(under, row)
    for row in made:
        count = f"{SAMPLES} samples" if row.row == ROWS["normal"] else row.row.split(", ")[-1]
        yield _aged(f"as calibrated, {count}", row)


def _counted(cells: Cells) -> set[str]:
    """Rows of plans from another number of samples."""
    names = {c["fields"].get("row", "") for c in cells.cells.values()}
    return {n for n in names if n.startswith("Planned, ") and n.endswith(" samples")}


def _aged(under: str, row: Row) -> Sequence[str]:
    m = row.means
    return (
        under,
        f"{computed(row, _steps(under))} of {_steps(under)}",
        row.row,
        str(row.samples),
        f"{m['psnr']:.2f} ± {row.error:.2f}",
        f"{m['ssim']:.4f}",
        f"{m['work']:.3f}",
    )


def _steps(under: str) -> int:
    return next((c.steps for c in CONDITIONS if c.name == under and c.steps), STEPS)


COSTS = ("solver", "under", "computed", "samples", "effort", "held out dB", "full runs", "s")


def costs(cells: Cells, model: str) -> Iterator[tuple]:
    """What every calibration found and took."""
    for cell in newest(cells, model):
        f = cell["fields"]
        measured = cell["result"]["plan"].get("measured", {})
        found = measured.get("held_out_db")
        yield (
            f["solver"],
            f["under"] or "–",
            f"{f['budget']} of {f['steps']}",
            f["samples"],
            f["effort"],
            "–" if found is None else f"{found:.1f}",
            f"{measured['cost']:.1f}" if "cost" in measured else "–",
            f"{cell['seconds']:.0f}",
        )


INTRODUCTION = f"""# Planned sampling

Made by `python benchmarks/planned.py`; every number is in the JSON file beside this page.

A plan is fitted on {SAMPLES} samples (captions such as the model was trained on) and judged on
others: captions never trained on, other seeds. Rivals are set by the sweep of
`benchmarks/fidelity.py` on samples of their own, at the setting with the highest PSNR that does no
more work than the budget's share of the plain run and {SKIPPED:g} of it for skipped steps. PSNR
(mean ± standard error of the per-sample dB, capped at 100) and SSIM compare decoded float frames
with the plain sample of the same seed, solver and number of steps; a plan's own row is without its
guard, so that its budget is exact, and the guard has a row of its own. Of plans made by several
versions of the planner the newest is told, be it better or worse. Adherence is the share of
attributes that the exact checker finds right. Gains are paired by sample (those of other efforts
are over the plan of the same line), and at each number of steps the lines of a picture are of the
same samples. "Weights descended" is the floor: the plan's own nodes, all weights moved by gradient
descent through the sampler on one half of the calibration samples, and kept if the other half gains
more than its standard error. What a calibration cost is told in full runs of one sample; "held out"
is its own figure, on latents, where PSNR is another scale.
"""
