"""The order of calls, when it stops and what it reports, by a clock that the calls move."""

import gc

import pytest

from benchmarks.paired import Timings, paired


class Bench:
    """Two calls that take listed seconds, the last again and again, by the bench's own clock."""

    def __init__(self, first, second):
        self.now = 0.0
        self.order = ""
        self.seconds = {"A": list(first), "B": list(second)}

    def call(self, which):
        def take():
            self.order += which
            left = self.seconds[which]
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return take

    def run(self, **options):
        return paired(self.call("A"), self.call("B"), clock=lambda: self.now, **options)


def test_order_is_swapped_every_pair_after_the_warmup():
    bench = Bench([1], [2])
    found = bench.run(pairs=4, warmup=2)
    assert bench.order == "ABAB" + "ABBAABBA"
    assert found.first_s == (1, 1, 1, 1) and found.second_s == (2, 2, 2, 2)


def test_warmup_is_not_counted():
    bench = Bench([100, 1], [100, 3])
    found = bench.run(pairs=2)
    assert found.first_s == (1, 1) and found.second_s == (3, 3)


def test_ratio_is_second_over_first_pair_by_pair():
    found = Bench([1, 2, 4], [2, 2, 16]).run(pairs=3, warmup=0)
    assert found.ratios == (2, 1, 4)
    assert found.interval().estimate == pytest.approx(2)
    written = found.as_dict()
    assert written["pairs"] == 3 and written["first_s"] == 2 and written["second_s"] == 2
    assert written["ratio_low"] <= written["ratio"] <= written["ratio_high"]


def test_stops_once_the_interval_is_narrow():
    noisy = [1.0, 1.2, 0.8, 1.1, 0.9] * 4
    bench = Bench([1], [*noisy, 1.0])
    found = bench.run(pairs=5, half_width=0.01, most_pairs=1000, warmup=0)
    assert 20 < len(found.ratios) < 200
    assert found.interval().half_width <= 0.01
    assert len(Bench([1], [1]).run(pairs=5, half_width=0.01).ratios) == 5


def test_stops_at_the_most_pairs_however_wide():
    bench = Bench([1], [1, 2] * 200)
    assert len(bench.run(pairs=3, half_width=1e-9, most_pairs=20, warmup=0).ratios) == 20
    assert len(bench.run(pairs=3, half_width=1e-9, warmup=0).ratios) == 30


def test_begins_no_pair_after_the_limit_but_one_always():
    assert len(Bench([1], [1]).run(pairs=100, limit_s=9, warmup=3).ratios) == 5
    assert len(Bench([50], [50]).run(pairs=100, limit_s=9, warmup=0).ratios) == 1


def test_collecting_garbage_is_not_counted_against_the_limit(monkeypatch):
    bench = Bench([1], [1])
    monkeypatch.setattr(gc, "collect", lambda: setattr(bench, "now", bench.now + 50))
    assert len(bench.run(pairs=100, limit_s=9).ratios) == 5


def test_garbage_is_collected_before_and_not_during():
    seen = []
    gc.enable()
    paired(lambda: seen.append(gc.isenabled()), lambda: None, pairs=2, warmup=0)
    assert seen == [False, False] and gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        paired(lambda: 1 / 0, lambda: None, pairs=2, warmup=0)
    assert gc.isenabled()


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Bench([1], [1]).run(pairs=0)


def test_real_clock_moves():
    found = paired(lambda: sum(range(1000)), lambda: sum(range(1000)), pairs=2)
    assert isinstance(found, Timings) and min(found.first_s + found.second_s) > 0
