"""The region benchmark: what its rows and goals say of the cells, and what it sets side by side."""

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from benchmarks.cells import Cells
from benchmarks.regions import described, ways, write
from benchmarks.regions_report import (
    RATIOS,
    STEPS,
    Paired,
    best,
    equal_time,
    equal_work,
    goals,
    rows,
    text,
    verdict,
)
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
TIME = {"work": 0.42, "tokens": 0.41, "speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
TIME["turns"] = 3


def evaluation(cells, setting, samples, ratio=0.25, psnr=40.0, share=0.875):
    """`psnr` and `share` are means of values that spread about them, alike in every cell."""
    spread = np.linspace(-1, 1, samples)
    made = {
        "means": MEANS,
        "psnr": [psnr + s for s in spread],
        "share": [share + 0.05 * s for s in spread],
        "all_right": [False] * samples,
        "plain": {"share": [0.9 + 0.05 * s for s in spread], "all_right": [False] * samples},
    }
    by = "plain" if setting.method is None else "ours"
    cells.run(
        lambda: made,
        ratio=ratio,
        model="shapes-t2v",
        set="evaluation",
        samples=samples,
        by=by,
        row=setting.row,
        setting=str(setting),
    )


def timing(cells, ratio=0.25, **rows):
    found = {name.replace("_", " "): TIME | changed for name, changed in rows.items()}
    cells.run(lambda: found, ratio=ratio, model="shapes-t2v", set="timing", rows="; ".join(found))


def own(name, ratio=0.25):
    return described(name, ways(ratio, True)[name])


def test_every_share_is_tried_on_pictures_and_on_videos():
    assert RATIOS == (0.5, 0.35, 0.25, 0.125) and STEPS == 28
    for moving in (True, False):
        found = ways(0.35, moving)
        assert {method.ratio for method in found.values()} == {0.35}
        assert ("by error, over time" in found) == moving
        settings = [(m.metric, m.high, m.strength, m.order) for m in found.values()]
        wanted = {("std", 1.0, 0.1, 0), ("std", 0.0, 0.1, 0), ("std", 0.0, 5.0, 0)}
        assert {*wanted, ("error", 0.0, 0.1, 1)} == set(settings)


def test_a_row_tells_the_counted_work_and_what_of_its_bound_was_realised(tmp_path):
    cells = Cells(tmp_path / "cells.json")
    timing(cells, highest_scores={})
    for samples in (64, 1000):
        evaluation(cells, own("highest scores"), samples)
    evaluation(cells, plain("euler", 12), 64)
    mine, other = rows(cells, "shapes-t2v")
    assert mine[:4] == ["0.25", "highest scores", "ours", "1000"]
    assert mine[7] == "-1.00 (-2.00)"
    assert mine[9:] == ["41.0%", "42.0%", "2.38", "2.00 (1.90–2.10)", "0.84"]
    assert other[1:3] == ["12 steps", "plain"] and other[9:] == ["–", "40.0%", "2.50", "–", "–"]
    assert not list(rows(cells, "shapes-mmdit"))


def test_rivals_are_plain_runs_of_as_much_work_and_of_as_much_time():
    assert (equal_work(TIME), equal_time(TIME)) == (12, 14)
    slower = TIME | {"speedup": 0.9, "work": 0.99}
    assert equal_time(slower) == equal_work(slower) == 27  # 28 is what all are compared with
    assert equal_time(TIME | {"speedup": 100.0}) == 1


def test_goals_are_those_of_the_row_furthest_above_its_rival_of_equal_time(tmp_path):
    cells = Cells(tmp_path / "cells.json")
    timing(cells, highest_scores={}, in_turn={"work": 0.47, "speedup_low": 1.85})
    for name, psnr in (("highest scores", 41.0), ("in turn", 42.0)):
        evaluation(cells, own(name), 64, psnr=psnr, share=0.895)
    assert best(cells, "shapes-t2v", 0.25) is None and not list(goals(cells, "shapes-t2v"))
    evaluation(cells, plain("euler", 14), 64, psnr=41.5, share=0.88)
    assert best(cells, "shapes-t2v", 0.25) == ("in turn", 14)
    bound, nearer, more_right, within = goals(cells, "shapes-t2v")
    assert {line[1] for line in (bound, nearer, more_right, within)} == {"in turn"}
    assert bound[3:] == ["0.94 (0.87–0.99)", "3 turns", "yes"]
    assert nearer[2:] == [
        "better PSNR than 14 plain steps",
        "+0.50 dB (+0.50 to +0.50)",
        "64",
        "yes",
    ]
    assert more_right[3:] == ["+1.50 points (+1.50 to +1.50)", "64", "yes"]
    assert within[3:5] == ["-0.50 points (-0.50 to -0.50)", "64"]
    assert within[5] == "too few: 1000 captions are asked"
    evaluation(cells, own("in turn"), 1000, psnr=42.0, share=0.885)
    assert [line[5] for line in goals(cells, "shapes-t2v")][3] == "no"
    write(cells, tmp_path / "regions.json")
    page = (tmp_path / "regions.md").read_text()
    assert "### Goals on shapes-t2v" in page and page == text(cells)[0]
    assert verdict(0.8, 0.9, 0.85) == "not clear" and verdict(0.85, 0.9, 0.85) == "yes"
    assert [verdict(*b, 0.0, above=True) for b in ((0, 0), (0, 1), (1, 1))] == [
        "no",
        "not clear",
        "yes",
    ]


def test_a_difference_is_of_the_samples_that_both_have():
    difference = Paired.of([1.0, 2.0, 3.0], [2.0, 4.0])
    assert (difference.estimate, difference.samples) == (1.5, 2)
    assert difference.low == 1.0 and difference.high == 2.0


def test_a_model_that_ships_with_flow_euler_keeps_its_shift():
    own = FlowMatchEulerDiscreteScheduler(shift=2.5)
    for name in ("own", "euler"):
        assert solver(own, name).config.shift == pytest.approx(2.5)
