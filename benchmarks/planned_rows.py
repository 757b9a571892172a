"""Which judged cells tables and pictures of plans are made from: of plans the newest, not the best.

A judged cell is named by its setting, so plans of an older planner stay in the file beside newer
ones; to report the better of the two would choose by the samples that both are judged on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from accel.plan import Plan
from benchmarks import fidelity_report
from benchmarks.cells import Cells, name
from benchmarks.fidelity_report import Row, last_checkpoint
from benchmarks.planned_cells import ELSEWHERE, GUARDED, ROWS, SAMPLES, code
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
    checkpoint, now = last_checkpoint(cells, model), code()
    found: dict[str, dict[str, Any]] = {}
    for cell in sorted(cells.cells.values(), key=lambda c: c["date"]):
        f = cell["fields"]
        if (f["set"], f.get("model"), f.get("checkpoint")) != ("plan", model, checkpoint):
            continue
        key = name(**{k: v for k, v in f.items() if k != "code"})
        if key not in found or found[key]["fields"]["code"] != now:
            found[key] = cell
    return list(found.values())


def _settings(cells: Cells, model: str) -> set[tuple[str, str]]:
    """(row, setting) of everything that the newest plans are run as."""
    found = set()
    for cell in newest(cells, model):
        f = cell["fields"]
        method: Any = Plan.from_json(json.dumps(cell["result"]["plan"])).methods[0]
        row = ROWS[f["effort"]] if f["samples"] == SAMPLES else f"Planned, {f['samples']} samples"
        names = (row, GUARDED, *ELSEWHERE) if row == ROWS["normal"] else (row,)
        kinds = [replace(method, guard=on) for on in (False, True)]
        kinds.append(replace(kinds[0], weights=()))
        found |= {(n, str(Setting(n, kind))) for n in names for kind in kinds}
    return found
