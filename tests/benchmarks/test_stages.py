"""The stages benchmark: what it tries fits its models, and its page says what was measured."""

import math

from accel.pipelines import tiny
from accel.samplers import ResolutionStages
from benchmarks import fidelity
from benchmarks.beside_fewer import measure, rows, write
from benchmarks.cells import Cells
from benchmarks.green import ROOT
from benchmarks.judge import Judge
from benchmarks.settings import Setting
from benchmarks.stages import INTRODUCTION, MODELS, RELEASED, SAMPLER, STEPS, TESTS, WAYS


def test_ways_differ_and_begin_low_or_come_back():
    assert len(set(WAYS.values())) == len(WAYS)
    for way in WAYS.values():
        if isinstance(way, ResolutionStages):
            assert way.scales[-1] == 1 and len(set(way.stages(STEPS))) == len(way.scales)
    for way, steps in RELEASED.values():
        assert [way.divided(steps).count(i) for i in range(3)] == list(way.steps)
    assert set(MODELS) <= set(tiny.NAMES)
    assert all((ROOT / path).is_file() for path in TESTS)


def test_a_run_of_a_stage_is_cheaper_and_stands_beside_fewer_steps(tmp_path):
    cells = Cells(tmp_path / "stages.json")
    shipped = fidelity.load("shapes-t2v", None)
    small = {**shipped.options, "height": 32, "width": 32, "num_frames": 5}
    model = fidelity.Model(shipped.name, shipped.pipe, shipped.folder, small)
    judge = Judge(model, cells, tmp_path, sampler=SAMPLER, workers=0, batch=2, steps=4)
    name = "half for half of the steps"
    measure(judge, [Setting(name, WAYS[name], SAMPLER, 4)], 1, 0, math.inf)
    assert all(cell["fields"]["set"] != "timing" for cell in cells.cells.values())
    (low,) = (line for line in rows(cells, "shapes-t2v", "4 steps") if line[1] == "ours")
    assert low[0] == name and 50 < float(low[3].rstrip("%")) < 75
    write(cells, tmp_path / "stages.json", INTRODUCTION)
    assert f"| {name} |" in (tmp_path / "stages.md").read_text()
