"""When to compute: schedules by hand and as published."""

import itertools

import pytest

from accel.caching import DeepCache, TaylorSeer
from accel.caching.policies import Interval, Listed, Power, explain_schedule, schedule

PUBLISHED = [
    (Interval(6, warmup=3), 50, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),
    (Interval(5, warmup=1), 50, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]),
    (Interval(4, warmup=2), 20, [0, 1, 5, 9, 13, 17]),
    (Interval(3), 10, [0, 3, 6, 9]),
    (Interval(6, warmup=3, last=True), 50, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44, 49]),
    (Interval(3, last=True), 10, [0, 3, 6, 9]),
    (Interval(1), 4, [0, 1, 2, 3]),
    (Interval(9, warmup=5), 4, [0, 1, 2, 3]),
    (Listed((0, 5, 9, 13)), 20, [0, 5, 9, 13]),
    (Listed((0, 5, 9, 13)), 8, [0, 5]),
]


@pytest.mark.parametrize(("policy", "total", "steps"), PUBLISHED, ids=str)
def test_schedule(policy, total, steps):
    assert schedule(policy, total) == steps


def test_released_counter_gives_the_same_steps():
    """A transcription of the released loop: a counter that runs to N - 1 between full steps."""
    for interval in range(1, 8):
        for warmup in range(1, 6):
            steps, counter = [], 0
            for step in range(60):
                if step < warmup or counter == interval - 1:
                    steps.append(step)
                    counter = 0
                else:
                    counter += 1
            assert schedule(Interval(interval, warmup), 60) == steps


def test_a_run_of_one_step_is_computed():
    assert schedule(Interval(5, last=True), 1) == schedule(Listed((0, 7)), 1) == [0]


def test_explanation_counts():
    assert explain_schedule(Interval(5), 50, "x") == "computes 10 of 50 steps (20%); x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TaylorSeer(interval=0), r"TaylorSeer\.interval must be at least 1, got 0"),
        (lambda: TaylorSeer(order=7), r"TaylorSeer\.order must be from 0 to 6, got 7"),
        (lambda: TaylorSeer(warmup=0), r"TaylorSeer\.warmup must be at least 1"),
        (lambda: TaylorSeer(carrier="block"), r"carrier must be one of output, hidden, module"),
        (lambda: TaylorSeer(basis="hermite"), r"basis must be taylor or newton, got 'hermite'"),
        (lambda: DeepCache(interval=0), r"DeepCache\.interval must be at least 1"),
        (lambda: DeepCache(branch=-1), r"DeepCache\.branch must be 0 or more"),
        (lambda: DeepCache(steps=(1, 2)), r"rising step numbers that begin with 0"),
        (lambda: DeepCache(steps=(0, 4, 2)), r"rising step numbers that begin with 0"),
        (lambda: DeepCache(steps=()), r"rising step numbers that begin with 0"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_power_schedule_of_latent_diffusion():
    """The list that the paper's code makes for T=250, N=10, p=1.5 (specification)."""
    wanted = [0, 1, 5, 10, 15, 22, 29, 37, 45, 53, 63, 72, 83, 93, 104, 116, 127, 140, 152, 165]
    wanted += [178, 192, 206, 220, 235]
    assert schedule(Power(10, 1.5), 250) == wanted


def test_power_keeps_the_count_and_goes_with_the_length():
    for total in (7, 28, 50):
        steps = schedule(Power(3, 1.4), total)
        assert steps[0] == 0 and len(steps) <= len(schedule(Interval(3), total))
        gaps = [b - a for a, b in itertools.pairwise(steps)]
        assert gaps[0] <= gaps[-1]
