"""Which steps are computed: the search finds what trying everything finds."""

import itertools

import numpy as np
import pytest

from accel.caching.planning.schedule import best_schedules, neighbours, segment_errors

STEPS = 10


def gram(seed):
    """Inner products of outputs that turn slowly, and not at an even pace."""
    rng = np.random.default_rng(seed)
    pace = np.cumsum(rng.uniform(0.05, 1.0, STEPS))
    outputs = np.stack([np.sin(pace * k / 3 + rng.uniform(0, 6)) for k in range(1, 9)], axis=1)
    return outputs @ outputs.T


def total(error, nodes):
    before = [None, *nodes[:-1]]
    after = [*nodes[1:], STEPS]
    return sum(error(b, n, a) for b, n, a in zip(before, nodes, after, strict=True))


@pytest.mark.parametrize("budget", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_brute_force(budget, seed):
    error = segment_errors(gram(seed), np.linspace(0.5, 1.5, STEPS))
    everything = [(0, *rest) for rest in itertools.combinations(range(1, STEPS), budget - 1)]
    expected = sorted(everything, key=lambda nodes: total(error, nodes))[:3]
    found = best_schedules(error, STEPS, budget, count=3)
    assert [s.nodes for s in found] == expected
    assert found[0].error == pytest.approx(total(error, expected[0]))


def test_the_whole_budget_is_every_step_without_error():
    error = segment_errors(gram(0), np.ones(STEPS))
    (found,) = best_schedules(error, STEPS, STEPS)
    assert found.nodes == tuple(range(STEPS)) and found.error == 0


def test_a_forecast_that_is_exact_costs_nothing():
    line = np.stack([np.ones(STEPS), np.arange(STEPS)], axis=1)
    error = segment_errors(line @ line.T, np.ones(STEPS))
    (found,) = best_schedules(error, STEPS, 2)
    assert found.nodes == (0, 1) and found.error < 1e-6


def test_the_forecast_lies_on_the_axis_given():
    places = [i**2 / 10 for i in range(STEPS)]
    line = np.stack([np.ones(STEPS), np.array(places)], axis=1)
    curved = segment_errors(line @ line.T, np.ones(STEPS))
    straight = segment_errors(line @ line.T, np.ones(STEPS), axis=places)
    assert straight(0, 1, STEPS) < 1e-6 < curved(0, 1, STEPS)


def test_gaps_have_a_limit():
    error = segment_errors(np.eye(40), np.ones(40))
    with pytest.raises(ValueError, match="budget must be at least 3 of 40 steps, got 2"):
        best_schedules(error, 40, 2)
    (found,) = best_schedules(error, 40, 4)
    assert max(np.diff([*found.nodes, 40])) <= 14
    with pytest.raises(ValueError, match="budget must be from 1 to 40"):
        best_schedules(error, 40, 41)


def test_neighbours_move_one_node_and_keep_the_first():
    found = neighbours((0, 3, 4), 6, reach=1)
    assert found == [(0, 2, 4), (0, 3, 5)]
