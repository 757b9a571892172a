"""What is tried at each ratio, and that the best within the limit is picked."""

import pytest

from accel.caching import DeepCache, MagCache, TaylorSeer, TeaCache
from benchmarks import peers, settings
from benchmarks.grids import GRIDS
from benchmarks.settings import Setting
from benchmarks.sweep import (
    PICTURE,
    RATIOS,
    STEPS,
    VIDEO,
    Sweep,
    Tried,
    best,
    budget,
    limit,
    within,
)


class Bench:
    """A sweep whose settings cost what their schedules say and score what `score` says."""

    def __init__(self, score, sampler="own", spacings=("",)):
        self.asked, self._score = [], score
        self.sweep = Sweep(self.attempt, lambda: (1.0,) * STEPS, sampler, spacings)

    def attempt(self, setting):
        self.asked.append(setting)
        method, work = setting.method, setting.steps / STEPS
        if isinstance(method, TaylorSeer):
            work = sum(method.policy.computes(i, STEPS) for i in range(STEPS)) / STEPS
        elif isinstance(method, settings.TaylorSeer):
            work = len(method.computed(STEPS)) / STEPS
        elif getattr(method, "mask", None):
            work = sum(method.mask) / STEPS
        elif isinstance(method, DeepCache | peers.DeepCache):
            work = 0.2 + 0.8 / method.interval
        return Tried(setting, self._score(setting), work)


def tried(score, work):
    return Tried(Setting("x"), score, work)


def test_limit_allows_a_little_more_than_the_ratio():
    assert [budget(r) for r in RATIOS] == [26, 18, 14, 11, 9]
    assert limit(2) == pytest.approx(0.53)
    assert within(0.53, 2) and not within(0.54, 2)


def test_best_is_the_highest_score_within_the_limit():
    all_of_them = [tried(50, 0.9), tried(30, 0.3), tried(40, 0.36), tried(20, 0.1)]
    assert best(all_of_them, 3) is all_of_them[2]
    assert best(all_of_them, 5) is all_of_them[3]
    assert best(all_of_them[:1], 2) is None


@pytest.mark.parametrize("ratio", RATIOS)
def test_schedules_use_the_budget_and_stay_within_it(ratio):
    bench = Bench(lambda s: 1.0)
    for row in ("TaylorSeer output", "diffusers TaylorSeer lite"):
        assert bench.sweep.choose(row, ratio) is not None
    works = [round(bench.attempt(s).work * STEPS) for s in list(bench.asked)]
    assert max(works) <= budget(ratio)
    assert max(works) >= budget(ratio) - 2


def test_forecasters_are_tried_at_the_best_schedule():
    def likes(setting):
        method = setting.method
        return 10 * method.last + 5 * (method.warmup == 5) + (method.order == 2)

    bench = Bench(likes)
    found = bench.sweep.choose("TaylorSeer output", 3)
    assert found is not None
    method = found.method
    assert (method.warmup, method.last, method.order) == (5, True, 2)
    assert {s.method.basis for s in bench.asked if s.method.order == 2} == {"taylor", "newton"}
    assert all(s.method.warmup == 5 for s in bench.asked if s.method.order != 1)
    for warmup in (2, 3, 5, 8):
        settles = {s.method.settle for s in bench.asked if s.method.warmup == warmup}
        assert settles == {True, False}


def test_carriers_inside_the_model_take_the_schedule_of_the_output():
    bench = Bench(lambda s: 10 * s.method.last + 5 * (s.method.warmup == 1) + s.method.order)
    output = bench.sweep.choose("TaylorSeer output", 4)
    inside = bench.sweep.choose("TaylorSeer module", 4)
    assert output is not None and inside is not None
    assert inside.method.carrier == "module"
    for field in ("interval", "warmup", "last"):
        assert getattr(inside.method, field) == getattr(output.method, field)
    theirs = bench.sweep.choose("diffusers TaylorSeer module", 4)
    assert theirs is not None and theirs.method.carrier == "module"
    assert theirs.method.computed(STEPS)[-1] == STEPS - 1


def test_threshold_rows_try_the_same_thresholds_for_us_and_for_diffusers():
    bench = Bench(lambda s: 1.0)
    for row in ("FirstBlockCache", "diffusers FirstBlockCache"):
        bench.sweep.choose(row, 2)
    half = len(bench.asked) // 2
    ours, theirs = bench.asked[:half], bench.asked[half:]
    assert [s.method.threshold for s in ours] == [s.method.threshold for s in theirs]
    assert {s.by for s in ours} == {"ours"} and {s.by for s in theirs} == {"diffusers"}
    assert not any(s.alone for s in ours) and all(s.alone for s in theirs)


def test_plain_solvers_get_the_same_number_of_steps_and_every_spacing():
    bench = Bench(lambda s: 1.0, spacings=("", ":trailing"))
    bench.sweep.choose("dpm++ with as few steps", 3)
    assert [(s.sampler, s.steps) for s in bench.asked] == [("dpm++", 18), ("dpm++:trailing", 18)]
    euler = Bench(lambda s: 1.0, sampler="euler")
    euler.sweep.choose("own with as few steps", 5)
    euler.sweep.choose("TaylorSeer output", 5)
    assert {s.sampler for s in euler.asked} == {"euler"}


def test_deepcache_and_its_package_are_tried_at_the_same_branches_and_intervals():
    bench = Bench(lambda s: 1.0)
    bench.sweep.choose("DeepCache", 2)
    bench.sweep.choose("DeepCache package", 2)
    ours = {
        (s.method.branch, s.method.interval, s.method.power) for s in bench.asked if s.by == "ours"
    }
    theirs = {(s.method.branch, s.method.interval) for s in bench.asked if s.by != "ours"}
    assert {(b, n) for b, n, power in ours if power == 1} == theirs
    assert {(b, n) for b, n, power in ours if power > 1} == theirs


def test_our_magcache_and_diffusers_are_tried_at_the_same_settings():
    bench = Bench(lambda s: 1.0)
    fitted = {"MagCache": MagCache((1.0,) * STEPS), "TeaCache": TeaCache(coefficients=(1.0, 0.0))}
    sweep = Sweep(bench.attempt, lambda: (1.0,) * STEPS, fitted=fitted.__getitem__)
    ours = [s.method for s in sweep.calibrated("MagCache", 3)]
    theirs = [s.method for s in sweep.magcache("diffusers MagCache", 3)]
    assert [(m.threshold, m.longest, m.retention) for m in ours] == [
        (m.threshold, m.max_skip, m.retention) for m in theirs
    ]
    tea = [s.method for s in sweep.calibrated("TeaCache", 3)]
    assert {m.coefficients for m in tea} == {(1.0, 0.0)} and len({m.threshold for m in tea}) > 4
    with pytest.raises(ValueError, match="MagCache needs calibration"):
        bench.sweep.choose("MagCache", 3)


def test_an_unknown_row_is_named():
    with pytest.raises(ValueError, match="unknown row 'TeaCash'"):
        Bench(lambda s: 1.0).sweep.choose("TeaCash", 2)


def test_a_recipe_belongs_to_the_largest_ratio_it_is_within():
    bench = Bench(lambda s: 1.0)
    recipes = {"recipe fast": TaylorSeer(interval=3, warmup=2, last=True)}  # 18 of 50 steps
    sweep = Sweep(bench.attempt, lambda: (), recipes=recipes)
    assert [sweep.choose("recipe fast", r) is not None for r in RATIOS] == [r == 3 for r in RATIOS]
    assert sweep.choose("recipe balanced", 3) is None


def test_grids_are_settings_apart_and_every_row_is_of_some_model():
    for row, tried in GRIDS.items():
        assert len(set(map(str, tried))) == len(tried) >= 5, row
        assert (row in VIDEO) or (row in PICTURE)
    bench = Bench(lambda s: s.method.threshold)
    found = bench.sweep.grid("EasyCache", 2)
    assert [s.method for s in found] == GRIDS["EasyCache"]
