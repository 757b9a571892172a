"""MagCache: schedules by hand, branches apart, other numbers of steps, and the published loop."""

import pytest
import torch

from accel.caching import MagCache
from accel.caching.magcache import Magnitudes
from accel.caching.policies import schedule
from tests.caching.stack import Stack, agrees, hold
from tests.tiny_pipelines import call, make

#        0    1    2    3     4    5    6     7    8    9
RATIOS = (1.0, 1.2, 1.0, 0.95, 1.0, 0.9, 1.04, 1.0, 1.0, 0.8)


def test_schedule_by_hand():
    """Ratios multiply over a stretch, and its errors add up; a computed step begins anew."""
    # from 3 on: .05; .05 + .05 = .1; + |1 - .855| = .245 > .2, computed at 5
    # 6: .04; 7: .08; 8: .12, the third in a row; 9: .12 + |1 - .832| = .288, computed
    assert schedule(Magnitudes(RATIOS, 0.2, 3, 0.3), 10) == [0, 1, 2, 5, 9]
    # at most two in a row: 3, 4 skipped, 5 computed, 6 and 7 skipped, 8 computed, 9: .2
    assert schedule(Magnitudes(RATIOS, 0.25, 2, 0.3), 10) == [0, 1, 2, 5, 8]
    # nothing kept back but the first step: 1 has an error of .2, 8 one of .12
    assert schedule(Magnitudes(RATIOS, 0.11, 3, 0.0), 10) == [0, 1, 5, 8, 9]


def test_no_threshold_computes_all_and_an_infinite_one_what_must_be():
    assert schedule(Magnitudes((1.0,) * 10, 0.0, 4, 0.0), 10) == list(range(10))
    assert schedule(Magnitudes(RATIOS, float("inf"), 4, 0.2), 10) == [0, 1, 6]


def test_another_number_of_steps_takes_the_nearest_ratio():
    wide = Magnitudes(RATIOS, 0.2, 3, 0.3)
    # 19 steps: ratios of 0, 0, 1, 2, 2, 2, 3, ... (halves go to the even one)
    stretched = tuple(RATIOS[round(i / 2)] for i in range(19))
    assert schedule(wide, 19) == schedule(Magnitudes(stretched, 0.2, 3, 0.3), 19)
    short = tuple(RATIOS[i] for i in (0, 2, 4, 7, 9))
    assert schedule(wide, 5) == schedule(Magnitudes(short, 0.2, 3, 0.3), 5)
    assert schedule(wide, 1) == [0]


def test_branches_keep_schedules_of_their_own():
    pipe = make("wan", scheduler="flow_euler")
    pipe.enable_acceleration(MagCache((1.0,) * 6, (1.0, 2.0, 2.0, 2.0, 2.0, 2.0), longest=9))
    call(pipe, "wan", steps=6)
    rows = pipe.acceleration.report().rows
    for branch, expected in (("cond", [0]), ("uncond", list(range(6)))):
        assert [r.index for r in rows if r.branch == branch and r.work == 1] == expected


@pytest.mark.parametrize("name", ["wan", "flux", "cogvideox"])
def test_latents_are_those_of_the_published_loop(name):
    stack, told = Stack(name), {}

    def computes():
        ratio, error, streak = told.get(stack.branch, (1.0, 0.0, 0))
        if stack.step >= int(0.2 * 10):
            ratio, streak = ratio * RATIOS[stack.step], streak + 1
            error += abs(1 - ratio)
            if error <= 0.2 and streak <= 3:
                told[stack.branch] = ratio, error, streak
                return False
        told[stack.branch] = 1.0, 0.0, 0
        return True

    stack.overwrite(computes, hold)
    expected = stack.go(steps=10)
    agrees(MagCache(RATIOS, threshold=0.2), stack, stack.computed, expected, steps=10)


def test_the_second_expert_computes_its_first_step():
    pipe = make("wan22")
    pipe.enable_acceleration(MagCache((1.0,) * 8, threshold=1.0, longest=99))
    call(pipe, "wan22", steps=8)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "cond"]
    first = min(r.index for r in rows if r.denoiser == "transformer_2")
    assert [r.index for r in rows if r.action == "computed"] == [0, first]
    assert 0 < first < 8


def test_without_ratios_calibration_is_asked_for():
    pipe = make("wan")
    with pytest.raises(ValueError, match="accel calibrate --for magcache"):
        pipe.enable_acceleration(MagCache())
    with pytest.raises(ValueError, match=r"MagCache\.uncond must be as many numbers as ratios"):
        MagCache((1.0, 1.0), (1.0,))


def test_one_hidden_state_a_branch_is_kept():
    pipe = make("wan")
    pipe.enable_acceleration(MagCache((1.0,) * 5, threshold=1.0))
    latents = call(pipe, "wan")
    assert pipe.acceleration.report().bytes_held == 2 * 32 * 24 * 4
    assert torch.isfinite(latents).all()
