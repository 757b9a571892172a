"""The fidelity benchmark's cells as a table, a page and a picture."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.cells import Cells
from benchmarks.settings import OWN
from benchmarks.sweep import RATIOS, STEPS, limit, within

ALIKE = 16
"""Samples on which rows are compared; the best are judged on more besides."""
SLACK = 0.02
"""Adherence counts as not fallen while its mean over pairs falls by no more than this."""
FITTED = re.compile(r"\b(weights|sigmas|limits|ratios|uncond|coefficients)=[^=]*(?=, \w+=|\)$)")
"""Fields of a setting that calibration fills in, with pages of numbers."""
HEAD = (
    "fewer steps",
    "whose",
    "row",
    "setting",
    "n",
    "work",
    "speed-up",
    "PSNR dB",
    "SSIM",
    "adherence (plain)",
    "change ≥",
    "all right (plain)",
)


def shown(setting: str) -> str:
    """A setting as tables show it: of what is fitted to the model only that it is."""
    return FITTED.sub(r"\1=…", setting)


@dataclass(frozen=True)
class Row:
    """A setting that was judged.

    Attributes:
        ratio: how many times fewer computed steps it was chosen for.
        psnr: of every sample, dB.
        means: of all measures; "work" is a fraction of the plain run's FLOPs.
        speedup: median ratio of paired timings with its 95 % bounds, or None where not timed.
    """

    ratio: int
    by: str
    row: str
    setting: str
    samples: int
    psnr: tuple[float, ...]
    means: Mapping[str, float]
    speedup: tuple[float, float, float] | None = None

    @property
    def error(self) -> float:
        """Standard error of the mean PSNR, dB."""
        n = len(self.psnr)
        return float(np.std(self.psnr, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def holds(self) -> bool:
        """Whether adherence did not fall."""
        return self.means["adherence_change"] >= -SLACK


def rows(
    cells: Cells,
    model: str,
    sampler: str,
    most: int | None = None,
    under: str = "",
    told: Callable[[Mapping[str, Any]], bool] = lambda fields: True,
) -> list[Row]:
    """Rows of a model's last judged checkpoint, each at its largest number of samples.

    Args:
        most: leave judgements on more samples out.
        under: in what the model or its call differed from how it ships.
        told: of a judged cell's fields, whether it gets a row.
    """
    checkpoint = last_checkpoint(cells, model)
    mine = [
        c
        for c in cells.cells.values()
        if c["fields"].get("model") == model
        and c["fields"].get("checkpoint") == checkpoint
        and c["fields"].get("compared") == sampler
        and c["fields"].get("under", "") == under
    ]
    times = {
        (c["fields"]["ratio"], setting): (t["speedup"], t["low"], t["high"])
        for c in mine
        if c["fields"]["set"] == "timing"
        for setting, t in c["result"].items()
    }
    found: dict[tuple[int, str, str], Row] = {}
    for cell in mine:
        f, result = cell["fields"], cell["result"]
        if f["set"] != "evaluation" or (most is not None and f["samples"] > most):
            continue
        if not told(f):
            continue
        key = (f["ratio"], f["row"], f["setting"])
        if key not in found or found[key].samples < f["samples"]:
            found[key] = Row(
                f["ratio"],
                f["by"],
                f["row"],
                shown(f["setting"]) + ("" if f["solver"] in (OWN, sampler) else f", {f['solver']}"),
                f["samples"],
                tuple(result["psnr"]),
                result["means"],
                times.get((f["ratio"], f"{f['row']}: {f['setting']}")),
            )
    return sorted(found.values(), key=lambda r: (r.ratio, -r.means["psnr"]))


def last_checkpoint(cells: Cells, model: str) -> str | None:
    """The checkpoint of `model` that was judged last, its first 12 digits."""
    judged = [
        c
        for c in cells.cells.values()
        if c["fields"].get("model") == model and c["fields"]["set"] == "evaluation"
    ]
    return judged[-1]["fields"]["checkpoint"] if judged else None


def best_of(
    judged: Sequence[Row], ratio: int, ours: bool = True, fallen: bool = False
) -> Row | None:
    """Ours (or of all others) with the highest PSNR within the limit at `ratio`.

    Of ours only those whose adherence did not fall, unless `fallen` are wanted too. Rows judged on
    more samples are compared on those that all of them have.
    """
    found = [r for r in judged if (r.by == "ours") == ours and within(r.means["work"], ratio)]
    if ours and not fallen:
        found = [r for r in found if r.holds]
    shared = min((r.samples for r in found), default=0)
    return max(found, key=lambda r: float(np.mean(r.psnr[:shared])), default=None)


def texts(row: Row) -> tuple[str, ...]:
    """A row's entries, in the order of `HEAD`."""
    m = row.means
    speed = "–" if row.speedup is None else "{:.2f} [{:.2f}, {:.2f}]".format(*row.speedup)
    return (
        f"{row.ratio}×",
        row.by,
        row.row,
        row.setting,
        str(row.samples),
        f"{m['work']:.3f}",
        speed,
        f"{m['psnr']:.2f} ± {row.error:.2f}",
        f"{m['ssim']:.4f}",
        f"{m['share']:.3f} ({m['plain_share']:.3f})",
        f"{m['adherence_change_low']:+.3f}",
        f"{m['all_right']:.2f} ({m['plain_all_right']:.2f})",
    )


def table(judged: Sequence[Row], title: str) -> Table:
    """For the terminal; ours in bold."""
    result = Table(title=title, header_style="bold")
    for head in HEAD:
        result.add_column(head, overflow="fold")
    for row in judged:
        result.add_row(*texts(row), style="bold" if row.by == "ours" else "")
    return result


def markdown(cells: Cells, models: Sequence[str]) -> str:
    """The page beside the JSON file."""
    notes = cells.path.with_suffix(".notes.md")
    lines = [INTRODUCTION, *([notes.read_text()] if notes.exists() else [])]
    for model in models:
        checkpoint = last_checkpoint(cells, model)
        if checkpoint is None:
            continue
        lines += [f"## {model}", "", f"Checkpoint sha256 `{checkpoint}…`.", ""]
        lines += [*_best(rows(cells, model, OWN)), *_overview(rows(cells, model, OWN, ALIKE))]
        lines += [f"![Pareto](fidelity-{model}.png)", ""]
        for sampler in (OWN, "euler"):
            solver = "the solver it ships with" if sampler == OWN else f"flow {sampler}"
            lines += _listing(f"With {solver}", rows(cells, model, sampler, ALIKE))
        wide = [row for row in rows(cells, model, OWN) if row.samples > ALIKE]
        lines += _listing("The best on more samples (not to be read against the rows above)", wide)
    lines += ["## Measured on", ""]
    for i, e in enumerate(json.loads(cells.path.read_text())["environments"]):
        versions = ", ".join(f"{k} {v}" for k, v in e["versions"].items())
        lines.append(
            f"- environment {i}: {e['cpu']}, {e['cores']} cores, GPU {e['gpu'] or 'none'}, "
            f"{e['system']}; {e['threads']} thread a process; {versions}"
        )
    return "\n".join(lines) + "\n"


def _listing(title: str, judged: Sequence[Row]) -> list[str]:
    if not judged:
        return []
    head = [f"### {title}", "", _line(HEAD), _line(["---"] * len(HEAD))]
    return [*head, *(_line(texts(row)) for row in judged), ""]


def _best(judged: Sequence[Row]) -> list[str]:
    lines = [f"Best of ours, adherence not fallen (mean change at least −{SLACK}):", ""]
    for ratio in RATIOS:
        row, other = best_of(judged, ratio), best_of(judged, ratio, ours=False)
        shared = min(r.samples for r in (row, other) if r is not None) if row or other else 0
        said = "none"
        if row is not None:
            said = f"`{row.setting}`, {np.mean(row.psnr[:shared]):.2f} dB"
        if other is not None:
            said += f"; best of others: {other.row}, `{other.setting}`"
            said += f", {np.mean(other.psnr[:shared]):.2f} dB"
        if row is not None and other is not None:
            said += f" (the same {shared} samples)"
        lines.append(f"- {ratio}× (work at most {limit(ratio):.3f}): {said}")
    return [*lines, ""]


def _overview(judged: Sequence[Row]) -> list[str]:
    """PSNR of every method at every ratio, ours first, the best at the smallest ratio on top."""
    found = {(r.by, r.row, r.ratio): f"{r.means['psnr']:.1f}" for r in reversed(judged)}
    names = sorted({(by, row) for by, row, _ in found})

    def rank(name: tuple[str, str]) -> tuple[bool, list[float]]:
        return name[0] != "ours", [-float(found.get((*name, r), 0)) for r in RATIOS]

    head = ["whose", "row", *(f"{r}×" for r in RATIOS)]
    return [
        f"PSNR in dB, mean of {ALIKE} samples, by how many times fewer steps are computed:",
        "",
        _line(head),
        _line(["---"] * len(head)),
        *(
            _line([*name, *(found.get((*name, r), "–") for r in RATIOS)])
            for name in sorted(names, key=rank)
        ),
        "",
    ]


def _line(entries: Sequence[str]) -> str:
    return "| " + " | ".join(entries) + " |"


INTRODUCTION = f"""# Fidelity

Made by `python benchmarks/fidelity.py`; every number is in the JSON file beside this page.

A row is a method at the setting that gave the highest PSNR on samples of its own (the sweep), and
is judged on others: captions never trained on, other seeds. A setting belongs to a ratio when its
work is at most 1/ratio + 0.03. PSNR (mean ± standard error of the per-sample
dB, capped at 100) and SSIM compare decoded float frames with the plain {STEPS}-step sample of the
same seed; adherence is the share of attributes that the exact checker finds right, with the plain
sample's in brackets and the one-sided 95 % bootstrap bound of the paired change. Work counts FLOPs
of linear, convolution and attention products that really ran in the denoiser, for everyone alike.
Speed-up is the median over rounds in which the plain sampler and all settings of a ratio run turn
about, with its 95 % interval. With flow Euler the settings are those chosen with the solver the
model ships with.
"""
