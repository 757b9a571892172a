"""The region benchmark: what its rows say of the cells, and which runs it sets side by side."""

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.cells import Cells
from benchmarks.regions import RATIOS, STEPS, described, rows, ways
from benchmarks.settings import plain, solver

MEANS = {
    "psnr": 40.0,
    "ssim": 0.99,
    "share": 0.875,
    "all_right": 0.5,
    "adherence_change": -0.01,
    "adherence_change_low": -0.02,
    "work": 0.4,
}


def evaluation(cells, setting, samples):
    by = "plain" if setting.method is None else "ours"
    cells.run(
        lambda: {"means": MEANS},
        ratio=0.25,
        model="shapes-t2v",
        set="evaluation",
        samples=samples,
        by=by,
        row=setting.row,
        setting=str(setting),
    )


def test_every_share_is_tried_on_pictures_and_on_videos():
    assert RATIOS == (0.5, 0.35, 0.25, 0.125) and STEPS == 28
    for moving in (True, False):
        found = ways(0.35, moving)
        assert {method.ratio for method in found.values()} == {0.35}
        assert ("highest scores over time" in found) == moving


def test_a_row_tells_the_counted_work_and_what_of_its_bound_was_realised(tmp_path):
    cells = Cells(tmp_path / "cells.json")
    own = described("highest scores", ways(0.25, True)["highest scores"])
    time = {"work": 0.42, "tokens": 0.41, "speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
    cells.run(
        lambda: {"highest scores": time}, ratio=0.25, model="shapes-t2v", set="timing", turns=3
    )
    for samples in (64, 1000):
        evaluation(cells, own, samples)
    evaluation(cells, plain("euler", 12), 64)
    mine, other = rows(cells, "shapes-t2v")
    assert mine[:4] == ["0.25", "highest scores", "ours", "1000"]
    assert mine[7] == "-1.00 (-2.00)"
    assert mine[9:] == ["41.0%", "42.0%", "2.38", "2.00 (1.90–2.10)", "0.84"]
    assert other[1:3] == ["12 steps", "plain"] and other[9:] == ["–", "40.0%", "2.50", "–", "–"]
    assert not list(rows(cells, "shapes-mmdit"))


def test_a_model_that_ships_with_flow_euler_keeps_its_shift():
    own = FlowMatchEulerDiscreteScheduler(shift=2.5)
    for name in ("own", "euler"):
        assert solver(own, name).config.shift == pytest.approx(2.5)
