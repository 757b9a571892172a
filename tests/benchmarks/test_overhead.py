"""What the two speed benchmarks time, checked on micro models; no time is asserted."""

import json

import pytest
import torch
import typer
from typer.testing import CliRunner

from accel.caching import FirstBlockCache, TaylorSeer
from accel.caching.policies import schedule
from benchmarks import budget, overhead, overhead_report, peers, realised
from benchmarks.cells import Cells
from benchmarks.green import green, sources
from benchmarks.models import Subject, flux, wan
from benchmarks.ways import (
    STEPS,
    UNET,
    Way,
    fitting,
    others,
    ready,
    transformer,
    without_denoiser,
)
from tests.tiny_pipelines import make
from tests.tiny_pipelines.text import WIDTH

pytestmark = pytest.mark.filterwarnings("ignore:.*skipped nothing.*")
SHORT = 12


@pytest.fixture(scope="module")
def tiny_wan():
    return wan("wan 10 ms", 2, 12, 24, 1, 4, blocks=3)


@pytest.fixture(scope="module")
def tiny_flux():
    return flux("flux 30 ms", 2, 16, 2, blocks=4)


@pytest.fixture(scope="module")
def tiny_sd():
    arguments = {
        "prompt_embeds": torch.zeros(1, 77, WIDTH),
        "negative_prompt_embeds": torch.ones(1, 77, WIDTH),
        "height": 64,
        "width": 64,
    }
    pipe = make("sd")
    pipe.set_progress_bar_config(disable=True)
    return Subject("sd", pipe, 9, 1, arguments)


def test_every_way_computes_and_skips_what_it_should(tiny_wan, tiny_flux, tiny_sd):
    pytest.importorskip("cache_dit")
    overhead.check(tiny_wan, (*transformer(SHORT), *others(SHORT)), SHORT)
    overhead.check(tiny_flux, transformer(SHORT), SHORT)
    pytest.importorskip("DeepCache")
    overhead.check(tiny_sd, UNET, SHORT)


def test_a_way_that_does_something_else_is_found_out(tiny_wan):
    never, always = TaylorSeer(interval=50), TaylorSeer(interval=1)
    with pytest.raises(AssertionError, match="ours wrong computes 0\\."):
        overhead.check(tiny_wan, [Way("wrong", "ours", never, never)], SHORT)
    with pytest.raises(AssertionError, match="ours wrong skips too little"):
        overhead.check(tiny_wan, [Way("wrong", "ours", always, always)], SHORT)


def test_computed_steps_keep_state(tiny_wan):
    for way in transformer(SHORT):
        if way.by == "ours":
            pipe = ready(tiny_wan.pipe, way.compute)
            tiny_wan.run(pipe, SHORT)
            report = pipe.acceleration.report()
            assert report.bytes_held > 0 and {row.action for row in report.rows} == {"computed"}


def test_without_its_denoiser_a_loop_still_runs(tiny_wan, tiny_sd):
    for subject in (tiny_wan, tiny_sd):
        pipe = without_denoiser(subject.pipe, subject.denoiser)
        assert subject.run(pipe, 3).shape == subject.run(subject.pipe, 3).shape
        assert overhead.flops(subject, pipe, 3) == 0


@pytest.mark.parametrize("together", [False, True])
def test_measure_and_table(tiny_wan, tmp_path, together):
    cells = Cells(tmp_path / "overhead.json")
    some = [way for way in transformer(SHORT) if way.name in ("TaylorSeer output", "MagCache")]
    result = cells.run(
        lambda: overhead.measure(
            tiny_wan, some, limit_s=2, together=together, least=3, steps=SHORT
        ),
        kind="timed",
        model=tiny_wan.name,
        together=together,
        sources="0123456789ab",
    )
    assert set(result["ways"]) == {"plain again", "ours: TaylorSeer output", "diffusers: MagCache"}
    for name, way in result["ways"].items():
        assert 1 <= way["pairs"] <= 120 and way["ratio_low"] <= way["ratio"] <= way["ratio_high"]
        assert ("skipped_s" in way) == (name != "plain again")
    overhead_report.write(cells)
    page = cells.path.with_suffix(".md").read_text()
    assert "| wan 10 ms | ours | TaylorSeer output |" in page and "0123456789ab" in page
    assert page.count("≤ 1.03") == 1


def test_what_is_timed_again_takes_the_place_of_what_was_not_sure(tmp_path):
    cells = Cells(tmp_path / "overhead.json")
    ways = {name: {"ratio": 1.0, "half_width": 0.01, "skipped_s": 1.0} for name in ("a", "b")}
    cells.run(lambda: {"ways": ways}, kind="timed", model="m")
    better = {name: {"ratio": 1.1, "half_width": 0.001} for name in ("a", "b")}
    cells.run(lambda: {"ways": better}, kind="again", model="m", way="b")
    cells.run(lambda: {"ways": better}, kind="again", model="other", way="a")
    found = overhead_report.newest(cells, overhead_report.timed(cells)[0])
    assert found == {"a": ways["a"], "b": better["b"] | {"skipped_s": 1.0}}


def test_goals_are_judged_by_the_whole_interval():
    way = {"ratio_low": 1.0, "ratio_high": 1.008}
    assert overhead_report.judge(way, 1.01, 0.002) == "met"
    assert overhead_report.judge(way, 1.01, 0.003) == "not sure"
    assert overhead_report.judge(way, 0.99, 0.005) == "missed"
    assert overhead_report.judge(way, 0.99, 0.02) == "not sure"


def test_settings_that_compute_as_many_steps():
    for target in budget.TARGETS:
        found = budget.ways(target, 0.1)
        ours, lite = found["ours: TaylorSeer output"], found["diffusers: TaylorSeer lite"]
        assert len(schedule(ours.policy, STEPS)) == len(lite.computed(STEPS)) == target
        assert sum(found["cache-dit: DBCache F1B0 step mask"].mask) == target
    with pytest.raises(ValueError, match="computes 49 of 50"):
        budget.static(lambda n, w: (n, w), lambda _: 0, 49)


def test_counted_work_of_every_way_is_that_of_its_steps(tiny_wan):
    pytest.importorskip("cache_dit")
    plain = overhead.flops(tiny_wan, ready(tiny_wan.pipe, None), STEPS)
    for name, setting in budget.others(12).items():
        share = overhead.flops(tiny_wan, ready(tiny_wan.pipe, setting), STEPS) / plain
        assert 0.2 < share < 0.75, name  # one block of three runs always, or some tokens
    for name, setting in budget.ways(12, 1e9).items():
        share = overhead.flops(tiny_wan, ready(tiny_wan.pipe, setting), STEPS) / plain
        if "output" in name:
            assert share == pytest.approx(12 / STEPS)
        elif "FirstBlockCache" not in name:
            assert 12 / STEPS < share < 12 / STEPS + 0.5 * 38 / STEPS, name


def test_counted_work_on_a_unet_is_that_of_its_steps(tiny_sd):
    pytest.importorskip("DeepCache")
    plain = overhead.flops(tiny_sd, ready(tiny_sd.pipe, None), STEPS)
    found = {}
    for name, setting in budget.unet(17).items():
        found[name] = overhead.flops(tiny_sd, ready(tiny_sd.pipe, setting), STEPS) / plain
    for name in ("TaylorSeer output", "HiCache", "Planned"):
        assert found.pop(f"ours: {name}") == pytest.approx(17 / STEPS), name
    assert found["ours: DeepCache"] == pytest.approx(found["DeepCache: DeepCache"])
    assert all(17 / STEPS < share < 0.95 for share in found.values()), found


def test_threshold_is_searched_for_the_steps_wanted(tiny_wan):
    branches = budget.residuals(tiny_wan)
    assert [len(steps) for steps in branches] == [STEPS, STEPS]
    assert budget.computed(branches, 0.0) == STEPS and budget.computed(branches, 1e9) == 1
    limit = budget.threshold(branches, 20)
    pipe = ready(tiny_wan.pipe, FirstBlockCache(limit))
    tiny_wan.run(pipe, STEPS)
    evaluated = sum(row.action == "computed" for row in pipe.acceleration.report().rows)
    assert abs(evaluated / 2 - 20) <= 4


def test_residuals_decide_as_counted_by_hand():
    steps = [torch.tensor([v]) for v in (1.0, 1.2, 1.4, 1.6, 2.2, 2.3)]
    # against the last computed: .2 .4* | .14 .57* | .05  -> 0, 2, 4
    assert budget.computed([steps], 0.3) == 3
    assert budget.computed([steps, steps[:1]], 0.3) == 2


def test_settings_and_work_are_found_once(tiny_wan, tmp_path, monkeypatch):
    monkeypatch.setattr(realised, "TARGETS", (12, 25))
    cells = Cells(tmp_path / "realised.json")
    settings, work = realised.prepared(tiny_wan, 25, cells)
    assert settings.keys() == work.keys() and all(0.4 < share < 0.75 for share in work.values())
    monkeypatch.setattr(realised, "flops", None)
    assert realised.prepared(tiny_wan, 25, cells) == (settings, work)


def test_loops_in_turn_and_table(tiny_flux, tmp_path, monkeypatch):
    monkeypatch.setattr(realised, "PAIRS", 2)
    cells = Cells(tmp_path / "realised.json")
    settings = {"ours: TaylorSeer output": TaylorSeer(5), "diffusers: X": peers.TaylorSeer()}
    work = {"ours: TaylorSeer output": 0.24, "diffusers: X": 0.3}
    result = cells.run(
        lambda: realised.measure(tiny_flux, settings, work),
        kind="timed",
        model="flux",
        target=12,
        sources=sources(),
    )
    way = result["ways"]["ours: TaylorSeer output"]
    assert way["bound"] == pytest.approx(1 / 0.24) and way["pairs"] == 2
    assert way["realised"] == pytest.approx(way["speedup"] * 0.24)
    realised.write(cells)
    assert "| flux | 12 of 50 | ours | TaylorSeer output | 4.167 |" in (
        cells.path.with_suffix(".md").read_text()
    )


def test_no_number_while_tests_are_red(tmp_path):
    test, kept = tmp_path / "test_it.py", tmp_path / "green.json"
    with pytest.raises(SystemExit, match="no test at"):
        green([str(test)], tmp_path)
    test.write_text("def test_it():\n    assert False\n")
    with pytest.raises(SystemExit, match="red, so there is no number"):
        green([str(test)], tmp_path)
    assert not kept.exists()
    test.write_text("def test_it():\n    pass\n")
    assert green([str(test)], tmp_path).startswith("1 passed")
    test.unlink()
    assert green([str(test)], tmp_path).startswith("1 passed"), "sources are as they were"


@pytest.mark.parametrize("benchmark", [overhead, realised])
def test_without_results_there_is_no_page(benchmark, tmp_path):
    out = tmp_path / "results.json"
    out.write_text(json.dumps({"environments": [], "cells": {}}))
    app = typer.Typer()
    app.command()(benchmark.main)
    result = CliRunner().invoke(app, ["--report-only", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert list(tmp_path.iterdir()) == [out]


def test_computed_steps_are_those_of_a_threshold_that_is_measured():
    """At 0 nothing would be compared; but SpeCa's computed steps compare nothing anyway."""
    ways = [w for w in fitting(False) if w.by == "ours" and hasattr(w.compute, "threshold")]
    assert len(ways) == 8
    assert all((w.compute.threshold > 0) == (w.name != "SpeCa") for w in ways)
