"""Which judged cells tables and pictures of plans are made from: of plans the newest, not the best.

A judged cell is named by its setting, so plans of an older planner stay in the file beside newer
ones; to report the better of the two would choose by the samples that both are judged on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import fidelity_report
from benchmarks.cells import Cells, name
from benchmarks.fidelity_report import Row, last_checkpoint
from benchmarks.planned_cells import (
    ELSEWHERE,
    GUARDED,
    ROWS,
    SAMPLES,
    code,
    made,
    mark_of,
    method_of,
    shown,
    variants,
)
from benchmarks.settings import Setting


def rows(cells: Cells, model: str, sampler: str, under: str = "") -> list[Row]:
    """As `fidelity_report.rows`: every rival, and of the rows of plans only the newest plans'."""
    known = _settings(cells, model)

    def told(fields: Mapping[str, Any]) -> bool:
        planned = fields["row"].startswith("Planned")
        return not planned or (fields["row"], fields["setting"]) in known

    return fidelity_report.rows(cells, model, sampler, under=under, told=told)


def newest(cells: Cells, model: str) -> list[dict[str, Any]]:
    """Cells of the last checkpoint's plans: by the planner as it is now, or else as it was last."""
    found = dict[str, dict[str, Any]]()
    for cell in made(cells, model, last_checkpoint(cells, model) or ""):
        key = name(**{k: v for k, v in cell["fields"].items() if k != "code"})
        if key not in found or found[key]["fields"]["code"] != code(cell["fields"]["effort"]):
            found[key] = cell
    return list(found.values())


def _settings(cells: Cells, model: str) -> set[tuple[str, str]]:
    """(row, setting) of everything that the newest plans are run as."""
    found, known = set(), shown(made(cells, model, last_checkpoint(cells, model) or ""))
    for cell in newest(cells, model):
        f = cell["fields"]
        row = ROWS[f["effort"]] if f["samples"] == SAMPLES else f"Planned, {f['samples']} samples"
        names = (row, GUARDED, *ELSEWHERE) if row == ROWS["normal"] else (row,)
        for kind in variants(method_of(cell)):
            setting = str(Setting(row, kind, mark=mark_of(kind, known)))
            found |= {(n, setting) for n in names}
    return found
