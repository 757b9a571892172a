"""The plan benchmark: rivals get the same budget, plans are fitted once and judged elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from accel.caching import Planned
from accel.plan import Plan
from benchmarks.cells import Cells
from benchmarks.conditions import CONDITIONS, Condition, adapted, changed
from benchmarks.judge import Judge
from benchmarks.planned import AGED, BUDGETS, chosen
from benchmarks.planned_cells import Bench, code, label, made, mark_of, shown, sized
from benchmarks.planned_picture import lines as drawn
from benchmarks.planned_report import ageing, costs, gains, tables, write
from benchmarks.planned_rows import rows
from benchmarks.settings import OWN, Setting, plain
from benchmarks.shapes import Model
from benchmarks.sweep import SKIPPED, STEPS, Sweep, Tried, budget, ratio_of, within
from tests.tiny_pipelines import TINY, make

EVERY = [(b, steps) for steps, budgets in BUDGETS.items() for b in budgets]


@pytest.mark.parametrize(("computed", "steps"), EVERY)
def test_rivals_may_do_as_much_work_and_no_more(computed, steps):
    ratio = ratio_of(computed, steps)
    assert budget(ratio, steps) == computed
    assert within(computed / steps + SKIPPED, ratio)
    assert not within((computed + 0.01) / steps + SKIPPED, ratio)
    asked = []

    def attempt(setting):
        asked.append(setting)
        method = setting.method
        work = setting.steps / steps
        if method is not None:
            policy = getattr(method, "policy", None)
            where = [i for i in range(steps) if policy.computes(i, steps)] if policy else ()
            work = len(where or method.computed(steps)) / steps
            work += 0.8 * SKIPPED  # output layers, say
        return Tried(setting, 1.0, work)

    sweep = Sweep(attempt, lambda: (1.0,) * steps, steps=steps)
    for row in ("TaylorSeer output", "diffusers TaylorSeer lite", "own with as few steps"):
        found = sweep.choose(row, ratio)
        assert found is not None and attempt(found).work <= computed / steps + SKIPPED
        assert found.steps == (computed if found.method is None else steps)


def test_masks_are_as_long_as_the_run():
    sweep = Sweep(lambda s: Tried(s, 1.0, sum(s.method.mask) / 28), lambda: (), steps=28)
    found = sweep.choose("cache-dit masks + TaylorSeer", ratio_of(10, 28))
    assert len(found.method.mask) == 28 and found.steps == 28


def test_masks_leave_room_for_the_first_block_of_the_model():
    def attempt(setting):
        return Tried(setting, 1.0, 1 / 8 + 7 / 8 * sum(setting.method.mask) / STEPS)

    for share, fits in ((1 / 8, True), (1 / 12, False)):
        sweep = Sweep(attempt, lambda: (), first_block=share)
        found = sweep.choose("cache-dit masks + TaylorSeer", ratio_of(18))
        assert (found is not None) == fits


def test_cells_of_another_file_are_not_run_again(tmp_path):
    Cells(tmp_path / "other.json").run(lambda: {"x": 1}, cell=1)
    cells = Cells(tmp_path / "own.json", beside=[tmp_path / "other.json", tmp_path / "none.json"])
    assert cells.run(lambda: {"x": 2}, cell=1) == {"x": 1}
    cells.run(lambda: {"x": 3}, cell=2)
    assert list(Cells(tmp_path / "own.json").cells) == ["cell=2"]
    assert [c["result"]["x"] for c in cells.finished()] == [3, 1]


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_a_low_rank_change_has_its_size_and_goes_away(name):
    pipe = make(name)
    denoiser = pipe.transformer if name == "wan" else pipe.unet
    before = {n: p.detach().clone() for n, p in denoiser.named_parameters()}
    with adapted(denoiser, 0.1):
        differing = {
            n: p - before[n]
            for n, p in denoiser.named_parameters()
            if not torch.equal(p, before[n])
        }
        assert any("to_q" in n for n in differing) and all("to_" in n for n in differing)
        for n, change in differing.items():
            assert float(change.norm() / before[n].norm()) == pytest.approx(0.1, rel=1e-3)
            assert torch.linalg.matrix_rank(change.double(), rtol=1e-5) <= 4
    assert all(torch.equal(p, before[n]) for n, p in denoiser.named_parameters())


def tiny():
    options = {"guidance_scale": 4.0, "height": 32, "width": 32}
    return Model("shapes-t2i", make("sd"), Path("nowhere"), {**TINY["sd"].call, **options})


def test_conditions_change_the_call_and_nothing_else():
    model = tiny()
    with changed(model, Condition("x", guidance=0.5, size=2)) as other:
        assert (other.options["guidance_scale"], other.options["height"]) == (2.0, 64)
        assert other.pipe is model.pipe and model.options["height"] == 32
    assert len({c.name for c in CONDITIONS}) == len(CONDITIONS)


def test_a_model_is_measured_at_the_size_that_is_told():
    whole = Model("shapes-mmdit", make("sd3"), Path("nowhere"), {"height": 128, "width": 128})
    assert sized(whole).options == {"height": 64, "width": 64} and whole.options["height"] == 128
    assert sized(whole).pipe is whole.pipe and sized(model := tiny()) is model


def test_parts_can_be_chosen():
    assert chosen(None, AGED) == AGED and chosen([12, 10], AGED) == (12,)


def test_plans_are_fitted_once_on_samples_that_none_is_judged_on(tmp_path):
    model = tiny()
    sets = [{s.seed for s in model.samples(n, 32)} for n in ("calibration", "sweep", "evaluation")]
    assert not (sets[0] & sets[1] | sets[0] & sets[2])
    model.__dict__["checkpoint"] = "ab" * 32
    path = tmp_path / "planned.json"

    def bench():
        judge = Judge(model, Cells(path), tmp_path / "kept", workers=0, steps=6)
        return Bench(judge, ["own with as few steps"])

    plan = bench().plan(3, samples=2)
    again = bench().plan(3, samples=2)
    assert again == plan and len(plan.methods[0].nodes) == 3
    assert len(Cells(path).cells) == 1 and f"code={code()}" in next(iter(Cells(path).cells))
    found = bench().judged(plan, "Planned", 3, 2)
    assert len(found["psnr"]) == 2 and found["means"]["work"] == pytest.approx(0.5, rel=1e-3)
    assert bench().setting(plan, "x", guard=True).method == plan.methods[0]
    assert not bench().setting(plan, "x").method.guard
    other = Bench(bench().judge, ["own with as few steps", "FirstBlockCache"])
    (few,), (why,) = other.rivals(3)
    assert few.steps == 3 and why.startswith("FirstBlockCache: ")
    assert model.pipe.scheduler.config == make("sd").scheduler.config
    fields = [c["fields"] for c in Cells(path).cells.values()]
    assert all(f["under"] == "6 steps" for f in fields)


def test_a_plan_is_descended_from_at_its_nodes(tmp_path):
    model = tiny()
    model.__dict__["checkpoint"] = "ab" * 32
    judge = Judge(model, Cells(tmp_path / "planned.json"), tmp_path / "kept", workers=0, steps=6)
    plan = Bench(judge).plan(3, samples=4)
    found = Bench(judge).plan(3, samples=4, effort="descent")
    (before,), (after,) = plan.methods, found.methods
    assert after.nodes == before.nodes and not after.limits
    assert found.measured["cost"] > plan.measured["cost"] + 4
    gained = found.measured["gradient_gain"]
    assert gained >= 0 and (gained > 0) == (after.weights != before.weights)


PLAN = Planned((0, 3), steps=6, guard=False)


def planned(path, method=PLAN, budget=12, samples=8, **more):
    """A cell of a plan."""
    plan = Plan((method,), measured={"held_out_db": 41.25, "cost": 11.5})
    Cells(path).run(
        lambda: {"plan": json.loads(plan.to_json())},
        **{"model": "shapes-t2v", "checkpoint": "ab", "set": "plan", "solver": OWN, "under": ""},
        **{"steps": 50, "budget": budget, "samples": samples},
        **{"effort": "normal", "code": code(), **more},
    )


def told(path, name, psnr, by="ours", under="", ratio=label(12, 50), work=0.24, **more):
    """A judged cell with these per-sample figures."""
    means = dict.fromkeys(
        ("share", "plain_share", "all_right", "plain_all_right", "adherence_change"), 1.0
    )
    means |= {"psnr": sum(psnr) / len(psnr), "ssim": 0.9, "work": work}
    means["adherence_change_low"] = -0.01
    fields = {
        **{"model": "shapes-t2v", "checkpoint": "ab", "set": "evaluation", "compared": OWN},
        **{"solver": OWN, "samples": len(psnr), "by": by, "row": name, "setting": "s", **more},
    }
    fields |= {"under": under} if under else {}
    fields |= {"setting": str(Setting(name, PLAN))} if name.startswith("Planned") else {}
    fields |= more
    Cells(path).run(lambda: {"psnr": list(psnr), "means": means}, ratio=ratio, **fields)


def test_tables_say_what_the_cells_hold(tmp_path, capsys):
    path = tmp_path / "planned.json"
    told(path, "Planned", [40.0, 44.0])
    told(path, "diffusers MagCache", [30.0, 33.0], by="diffusers")
    told(path, "diffusers TaylorSeer lite", [31.0, 31.0], by="diffusers")
    told(path, "unipc with as few steps", [35.0, 40.0, 90.0], by="plain")
    told(path, "Planned, 2 samples", [39.0, 41.0])
    told(path, "Planned, as it was", [38.0, 38.0], under="half the guidance")
    told(path, "Planned", [50.0, 50.0], ratio=label(18, 50), work=0.36)
    planned(path)
    planned(path, samples=2)
    told(path, "Planned, weights descended", [40.5, 45.5])
    planned(path, effort="descent")
    cells = Cells(path)
    found = {title: lines for title, _, lines in tables(cells, "shapes-t2v")}
    wide, narrow = found["50 steps of the solver it ships with: gains"]
    assert wide == ("18 of 50", "50.00 ± 0.00", "0.360", *["–"] * 6)
    assert narrow[0] == "12 of 50" and narrow[1].startswith("42.00 ± 2.00")
    assert narrow[3] == "+10.50 ± 0.50 (diffusers MagCache)"
    assert narrow[4] == "+4.50 ± 0.50 (unipc with as few steps)"
    assert narrow[6:] == ("–", "–", "+1.00 ± 0.50")
    assert ("half the guidance", "12 of 50", "Planned, as it was") in [
        line[:3] for line in ageing(cells, "shapes-t2v")
    ]
    assert [line[:1] for line in ageing(cells, "shapes-t2v")][-1] == ("as calibrated, 2 samples",)
    cost, less, _ = costs(cells, "shapes-t2v")
    assert less[3] == 2 and cost[2:7] == ("12 of 50", 8, "normal", "41.2", "11.5")
    line = drawn(rows(cells, "shapes-t2v", OWN), 50)
    assert line["best plain solver"] == [(12, 37.5, 2.5)]  # its third sample no other row has
    assert line["best peer"] == [(12, 31.5, pytest.approx(1.5))]
    assert line["Planned"] == [(12, 42.0, 2.0), (18, 50.0, 0.0)]
    write(cells, path)
    page = path.with_suffix(".md").read_text()
    assert "+10.50 ± 0.50 (diffusers MagCache)" in page and "ab…" in page
    assert (tmp_path / "planned-shapes-t2v.png").stat().st_size > 10_000
    assert "shapes-t2i" not in page
    assert gains([], 50) == []


def test_plans_that_are_shown_alike_are_judged_apart(tmp_path):
    """Of long fields a cell's name holds the beginning: the last weights are not in it."""
    path, nodes = tmp_path / "planned.json", tuple(range(25))
    first, second = (
        Planned(nodes, weights=(*[()] * 24, (last,)), guard=False) for last in (0.1, 0.2)
    )
    assert str(Setting("", first)) == str(Setting("", second))
    planned(path, first, budget=25, code="older")
    planned(path, second, budget=25, code="newer")
    known = shown(made(Cells(path), "shapes-t2v", "ab"))
    assert mark_of(first, known) == "" != mark_of(second, known)
    told(path, "Planned", [44.0, 44.0], setting=str(Setting("Planned", first)), ratio=2.0)
    assert rows(Cells(path), "shapes-t2v", OWN) == []  # the newer was not judged yet
    named = str(Setting("Planned", second, mark=mark_of(second, known)))
    told(path, "Planned", [40.0, 40.0], setting=named, ratio=2.0)
    (row,) = rows(Cells(path), "shapes-t2v", OWN)
    assert row.means["psnr"] == 40.0


@pytest.mark.parametrize("current", ["newer", "older"])
def test_a_newer_plan_is_told_even_if_it_is_worse(tmp_path, current):
    path = tmp_path / "planned.json"
    versions = {"older": (Planned((0, 2), steps=6), 44.0), "newer": (PLAN, 40.0)}
    for version, (method, psnr) in versions.items():
        kinds = {"Planned": False, "Planned, with its guard": True, "Planned, as it was": False}
        for row, guard in kinds.items():
            setting = str(Setting(row, replace(method, guard=guard)))
            under = "half the guidance" if row.endswith("was") else ""
            told(path, row, [psnr, psnr], setting=setting, under=under)
        used = version == current == "older"
        planned(path, replace(method, guard=True), code=code() if used else version)
    told(path, "Planned, made anew", [60.0, 60.0], setting="no plan's", under="half the guidance")
    cells, expected = Cells(path), versions[current][1]
    found = {title: lines for title, _, lines in tables(cells, "shapes-t2v")}
    title = "50 steps of the solver it ships with"
    ((_, mean, *_),) = found[f"{title}: gains"]
    assert mean.startswith(f"{expected:.2f}")
    assert len(found[title]) == 2  # with its guard and without
    assert [r.means["psnr"] for r in rows(cells, "shapes-t2v", OWN)] == [expected] * 2
    aged = [r.means["psnr"] for r in rows(cells, "shapes-t2v", OWN, "half the guidance")]
    assert aged == [expected]
    assert len(list(costs(cells, "shapes-t2v"))) == 1


def test_plain_runs_of_other_lengths_are_kept_apart(tmp_path):
    model = tiny()
    model.__dict__["checkpoint"] = "ab" * 32
    folders = {
        Judge(model, Cells(tmp_path / "c.json"), tmp_path, **how)._references.folder.name
        for how in ({}, {"steps": 28}, {"under": "a random LoRA"}, {"sampler": "euler"})
    }
    assert len(folders) == 4
    assert plain().sampler == OWN
