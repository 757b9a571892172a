"""Which steps are computed: the search finds what trying everything finds."""

import itertools

import numpy as np
import pytest

from accel.caching.planning.schedule import (
    best_schedules,
    fitted_errors,
    neighbours,
    segment_errors,
)

STEPS = 10


def outputs(seed, steps=STEPS):
    """(N, 8): what turns slowly, and not at an even pace."""
    rng = np.random.default_rng(seed)
    pace = np.cumsum(rng.uniform(0.05, 1.0, steps))
    return np.stack([np.sin(pace * k / 3 + rng.uniform(0, 6)) for k in range(1, 9)], axis=1)


def gram(seed, steps=STEPS):
    """Inner products of outputs."""
    found = outputs(seed, steps)
    return found @ found.T


def total(error, nodes, steps=STEPS):
    before = [None, *nodes[:-1]]
    after = [*nodes[1:], steps]
    return sum(error(b, n, a) for b, n, a in zip(before, nodes, after, strict=True))


@pytest.mark.parametrize("kind", [segment_errors, fitted_errors])
@pytest.mark.parametrize("gap", [14, 3])
@pytest.mark.parametrize(("steps", "seed"), [(6, 0), (9, 1), (10, 0), (12, 2)])
def test_equals_brute_force_at_every_budget(steps, seed, gap, kind):
    error = kind(gram(seed, steps), np.linspace(0.5, 1.5, steps))
    for budget in range(-(-steps // gap), steps + 1):
        everything = [
            nodes
            for rest in itertools.combinations(range(1, steps), budget - 1)
            if max(np.diff(nodes := (0, *rest, steps))) <= gap
        ]
        expected = sorted((total(error, n[:-1], steps), n[:-1]) for n in everything)[:3]
        found = best_schedules(error, steps, budget, count=3, gap=gap)
        assert [s.nodes for s in found] == [nodes for _, nodes in expected]
        assert [s.error for s in found] == pytest.approx([e for e, _ in expected])


def test_the_limit_of_gaps_binds():
    """What the exact search finds without it has a longer gap."""
    error = segment_errors(gram(2, 12), np.linspace(0.5, 1.5, 12))
    free, bound = (best_schedules(error, 12, 5, gap=gap)[0] for gap in (14, 3))
    assert max(np.diff([*free.nodes, 12])) > 3 >= max(np.diff([*bound.nodes, 12]))
    assert free.error < bound.error


@pytest.mark.parametrize("before", [None, 1])
def test_a_fitted_segments_error_is_what_least_squares_leaves(before):
    values, shares = outputs(3), np.linspace(0.5, 1.5, STEPS)
    missing = shares[4:8] @ values[4:8]
    known = values[[3]] if before is None else values[[3, before]]
    best = np.linalg.lstsq(known.T, missing, rcond=None)[0]
    error = fitted_errors(gram(3), shares, ridge=1e-12)(before, 3, 8)
    assert error == pytest.approx(float(np.linalg.norm(missing - best @ known)), rel=1e-6)


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
