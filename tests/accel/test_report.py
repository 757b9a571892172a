"""The report of a run: rows, totals, table, JSON and picture."""

import dataclasses
import json
import math
import time

import pytest
import torch
from PIL import Image

from accel.caching import DeepCache, TaylorSeer
from accel.report import Report, Row
from tests.probes import HALF
from tests.tiny_pipelines import call, make


def run(name, *methods, **how):
    pipe = make(name)
    pipe.enable_acceleration(*methods)
    call(pipe, name, **how)
    return pipe.acceleration.report()


@pytest.fixture(scope="module")
def wan():
    return run("wan", HALF)


def test_a_row_for_every_step_and_branch(wan):
    assert [(r.index, r.branch) for r in wan.rows] == [
        (i, branch) for i in range(5) for branch in ("cond", "uncond")
    ]
    actions = ["computed", "computed", "forecast", "computed", "forecast"]
    assert [r.action for r in wan.rows[::2]] == [r.action for r in wan.rows[1::2]] == actions
    assert [r.work for r in wan.rows[::2]] == [1, 1, 0, 1, 0]
    assert [r.sigma for r in wan.rows] == sorted((r.sigma for r in wan.rows), reverse=True)
    assert {r.denoiser for r in wan.rows} == {"transformer"} and wan.complete
    assert wan.branches == ["cond", "uncond"]


def test_totals_follow_from_the_rows(wan):
    assert wan.computed_fraction == pytest.approx(3 / 5) and wan.basis == "flops"
    assert wan.bound == pytest.approx(5 / 3)
    assert wan.seconds_loop > 0 and wan.seconds_rest > 0


def test_both_experts_have_rows():
    report = run("wan22", HALF)
    assert [r.denoiser for r in report.rows] == ["transformer"] * 8 + ["transformer_2"] * 2
    assert [r.action for r in report.rows[::2]] == [
        "computed",
        "computed",
        "forecast",
        "computed",
        "computed",
    ], "the second expert has a warm-up of its own"


def test_bytes_held_are_those_of_the_kept_outputs():
    pipe = make("wan")
    sizes = []
    pipe.transformer.register_forward_hook(
        lambda m, a, o: sizes.append(o[0].numel() * o[0].element_size())
    )
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    assert pipe.acceleration.report().bytes_held == 2 * 2 * sizes[0], "two outputs, two branches"


def test_work_on_skipped_steps_is_reported():
    report = run("sd", DeepCache(interval=2))
    assert [r.action for r in report.rows] == ["computed", "reused"] * 2 + ["computed"]
    assert all((0 < r.work < 1) == (r.action == "reused") for r in report.rows)
    assert report.computed_fraction == pytest.approx(sum(r.work for r in report.rows) / 5)


def test_wall_time_of_the_loop_and_of_the_rest():
    """A sleep in a step is loop time, a sleep in the text encoder is not."""
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    pipe.text_encoder.register_forward_pre_hook(lambda m, a: time.sleep(0.1))

    def callback(pipe, index, timestep, values):
        time.sleep(0.1)
        return values

    began = time.perf_counter()
    call(pipe, "wan", callback=callback)
    whole = time.perf_counter() - began
    report = pipe.acceleration.report()
    assert report.seconds_loop > 0.5 and report.seconds_rest > 0.2
    assert whole * 0.9 < report.seconds_loop + report.seconds_rest < whole


def test_the_report_is_that_of_the_last_run():
    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    call(pipe, "wan")
    first = pipe.acceleration.report()
    assert pipe.acceleration.report() == first
    call(pipe, "wan", steps=4, guidance=1.0)
    assert len(pipe.acceleration.report().rows) == 4 and len(first.rows) == 10


@pytest.mark.parametrize("at", [1, 4])
def test_an_aborted_run_is_reported_as_that(at):
    def callback(pipe, index, timestep, values):
        if index == at:
            raise KeyboardInterrupt
        return values

    pipe = make("wan")
    pipe.enable_acceleration(HALF)
    with pytest.raises(KeyboardInterrupt):
        call(pipe, "wan", callback=callback)
    report = pipe.acceleration.report()
    assert not report.complete and len(report.rows) == 2 * (at + 1)
    assert "(aborted)" in str(report)
    call(pipe, "wan")
    assert pipe.acceleration.report().complete


def test_a_run_that_skipped_nothing_warns(recwarn):
    run("wan", HALF)
    assert not [w for w in recwarn if "skipped nothing" in str(w.message)]
    with pytest.warns(UserWarning, match="TaylorSeer skipped nothing in this run of 5 steps"):
        run("wan", TaylorSeer(interval=1))


def test_table_and_summary(wan):
    lines = str(wan).splitlines()
    assert "step" in lines[1] and "cond" in lines[1] and "uncond" in lines[1]
    steps = [line for line in lines if "computed 100%" in line or "forecast 0%" in line]
    assert len(steps) == 5 and sum("forecast" in line for line in steps) == 2
    assert "10 evaluations, 6 computed, 4 forecast" in wan.summary()
    assert "computed 60.0% of the flops, which alone is 1.67x in the loop" in wan.summary()
    assert "TaylorSeer(interval=2, warmup=2)" in wan.summary()


def test_json_keeps_every_figure(wan, tmp_path):
    values = json.loads(wan.save(tmp_path / "report.json").read_text())
    rows = tuple(Row(**row) for row in values.pop("rows"))
    assert values.pop("bound") == wan.bound
    assert Report(rows=rows, **values) == wan


def test_json_has_no_infinities(tmp_path):
    row = Row(0, math.inf, "0", "unet", "reused", 0.0)
    report = Report("x", (row,), 0.0, "flops", 1.0, 1.0, 0, True)
    assert report.bound == math.inf
    values = json.loads(
        report.save(tmp_path / "report.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert values["rows"][0]["sigma"] is None and values["bound"] is None


@pytest.mark.parametrize(("name", "method"), [("wan", HALF), ("sd", DeepCache(interval=2))])
def test_picture(name, method, tmp_path):
    path = run(name, method).plot(tmp_path / "report.png")
    pixels = torch.tensor(list(Image.open(path).convert("RGB").getdata()))
    assert len(pixels.unique(dim=0)) > 20, "more than a blank page"


def test_a_report_cannot_be_changed(wan):
    with pytest.raises(dataclasses.FrozenInstanceError):
        wan.computed_fraction = 0.0
