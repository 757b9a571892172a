"""Steps of real pipelines taken in turn, and rounds; the clock is real, no time is asserted."""

import contextlib
import gc
import platform

import pytest
import torch

import accel
from accel.caching import TaylorSeer
from benchmarks import peers
from benchmarks.rounds import rounds
from benchmarks.stepping import Stepper, keep_memory
from tests.tiny_pipelines import call, make

STEPS = 6


def runner(pipe, name, results):
    def run(callback):
        results.append(call(pipe, name, steps=STEPS, callback=callback))

    return run


@pytest.mark.filterwarnings("ignore:.*skipped nothing.*")
def test_pipelines_in_turn_give_what_they_give_alone():
    plain = make("wan")
    fast = peers.twin(plain)
    accel.enable(fast, TaylorSeer(interval=2, warmup=2))
    expected = [call(plain, "wan", steps=STEPS), call(fast, "wan", steps=STEPS)]
    results = ([], [])
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(Stepper(runner(pipe, "wan", found), 2))
            for pipe, found in zip((plain, fast), results, strict=True)
        ]
        for _ in range(2 * (STEPS - 2) + 1):
            assert all(stepper.step() > 0 for stepper in both)
    for found, wanted in zip(results, expected, strict=True):
        assert len(found) == 2 and all(torch.equal(one, wanted) for one in found)
    assert not torch.equal(*expected)
    assert [len(stepper.wall_s) for stepper in both] == [2 * (STEPS - 2) + 1] * 2
    assert len(both[0].cpu_s) == len(both[0].wall_s) and min(both[0].wall_s) > 0


def test_only_whole_steps_after_the_first_ones_are_timed():
    order = []

    def run(callback):
        for i in range(4):
            order.append(i)
            callback(None, i, None, {})
        order.append("end")

    with Stepper(run, 1) as stepper:
        assert order == []
        stepper.step()
        assert order == [0, 1]
        stepper.step()
        stepper.step()
        assert order == [0, 1, 2, 3]
        stepper.step()
        assert order == [0, 1, 2, 3, "end", 0, 1]
    assert len(stepper.wall_s) == 4
    assert order[-1] == 1, "leaving must end the run where it is"


def test_errors_reach_the_caller():
    def broken(callback):
        raise ZeroDivisionError("inside")

    with Stepper(broken, 1) as stepper, pytest.raises(ZeroDivisionError, match="inside"):
        stepper.step()
    short = Stepper(lambda callback: callback(None, 0, None, {}), 1)
    with short as stepper, pytest.raises(ValueError, match="more than 1 steps"):
        stepper.step()
    with pytest.raises(RuntimeError, match="not running"):
        stepper.step()
    with pytest.raises(ValueError, match="at least 1"):
        Stepper(broken, 0)


class Ways:
    """A baseline of 2 s, one that takes 3 s, and one that wavers; the log of their turns."""

    def __init__(self):
        self.log, self.wavering = [], iter([1.0, 4.0] * 500)

    def take(self, name, seconds):
        def once():
            self.log.append(name)
            return next(self.wavering) if seconds is None else seconds

        return once

    def run(self, **options):
        others = {"slow": self.take("slow", 3.0), "wavers": self.take("wavers", None)}
        return rounds(self.take("plain", 2.0), others, **options)


def test_every_round_has_one_turn_of_each_in_changing_order():
    ways = Ways()
    found = ways.run(least=6, warmup=1)
    assert ways.log[:3] == ["plain", "slow", "wavers"]
    turns = [tuple(ways.log[i : i + 3]) for i in range(3, len(ways.log), 3)]
    assert len(turns) == 6 and all(sorted(t) == ["plain", "slow", "wavers"] for t in turns)
    assert len(set(turns)) > 1
    assert found["slow"].ratios == (1.5,) * 6
    assert found["slow"].first_s == (2.0,) * 6 and found["slow"].second_s == (3.0,) * 6


def test_what_is_sure_drops_out():
    ways = Ways()
    found = ways.run(least=5, half_width=1e-6, most=20)
    assert len(found["slow"].ratios) == 5 and len(found["wavers"].ratios) == 20
    assert ways.log.count("plain") == 21


def test_no_round_begins_after_the_limit(monkeypatch):
    now = iter(range(1000))
    # collecting garbage takes its time, which is no round's
    monkeypatch.setattr(gc, "collect", lambda: [next(now) for _ in range(50)])
    assert len(Ways().run(least=50, limit_s=4, clock=lambda: next(now))["slow"].ratios) == 4
    assert len(Ways().run(least=50, limit_s=0)["slow"].ratios) == 1
    with pytest.raises(ValueError, match="at least 1"):
        Ways().run(least=0)


def test_memory_is_kept_where_the_allocator_can_be_told():
    assert keep_memory() == (platform.libc_ver()[0] == "glibc")
