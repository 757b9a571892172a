"""The guidance benchmark: every method is tried, and its rows say what the cells hold."""

import math

from accel.pipelines import tiny
from accel.samplers import METHODS
from accel.samplers.guidance import Guidance
from benchmarks import fidelity
from benchmarks.beside_fewer import measure, rows, write
from benchmarks.cells import Cells
from benchmarks.guidance import CALIBRATED, INTRODUCTION, STEPS, guided_by, settings, ways
from benchmarks.judge import Judge


def test_every_guidance_method_is_tried():
    found = ways(20)
    kinds = {kind for kind in METHODS.values() if issubclass(kind, Guidance)}
    assert {type(method) for method in found.values()} == kinds
    assert len({repr(method) for method in found.values()}) == len(found)
    assert found["GuidedSteps, first half"].steps == tuple(range(10))
    assert found["IntervalGuidance, from the first step"].high == math.inf
    assert set(STEPS) == {"shapes-t2i", "shapes-t2v"} <= set(tiny.NAMES)


def test_a_run_judges_times_and_sets_plain_steps_beside(tmp_path):
    """Small pictures and few steps; run again, nothing is measured anew."""
    cells = Cells(tmp_path / "guidance.json")
    model = guided_by(fidelity.load("shapes-t2i", None), 3.0)
    judge = Judge(model, cells, tmp_path, workers=0, batch=2, steps=4, under="guidance 3")
    chosen = ["HeldGuidance, nothing held", CALIBRATED]
    for _ in range(2):
        measure(judge, settings(judge, chosen), 1, 1, math.inf)
        made = len(cells.cells)
    assert len(cells.cells) == made and model.options["guidance_scale"] == 3.0
    (under,) = {c["fields"]["under"] for c in cells.cells.values()}
    assert "4 steps" in under and "guidance 3" in under
    table = list(rows(cells, "shapes-t2i", under))
    assert {line[0] for line in table} == {*chosen, "fewer plain steps"}
    held = next(line for line in table if line[0] == chosen[0])
    assert held[3] == "75.0%" and float(held[4].split()[0]) > 0 and float(held[5]) > 10
    fewer = [line for line in table if line[1] == "plain"]
    assert {line[-1] for line in fewer} <= {"3 steps", "4 steps"} and fewer
    assert [line[3] for line in table] == sorted((line[3] for line in table), reverse=True)
    write(cells, tmp_path / "guidance.json", INTRODUCTION)
    text = (tmp_path / "guidance.md").read_text()
    assert "## shapes-t2i, 4 steps, guidance 3" in text and "| HeldGuidance, nothing held |" in text


def test_out_of_time_begins_nothing(tmp_path):
    cells = Cells(tmp_path / "guidance.json")
    model = guided_by(fidelity.load("shapes-t2i", None), 2.0)
    judge = Judge(model, cells, tmp_path, workers=0, steps=4)
    measure(judge, settings(judge, None), 1, 1, -math.inf)
    assert not cells.cells
