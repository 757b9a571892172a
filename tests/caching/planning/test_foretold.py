"""What schedules are foretold to come to, against what they are measured to."""

import numpy as np
import pytest

from accel.caching.planning.foretold import Foretold, Part
from accel.caching.planning.planner import candidates, fit
from accel.caching.planning.schedule import neighbours
from tests.caching.planning.analytic import SCHEDULERS, STEPS, Gaussian

NODES = ((0, 2, 5, 8), (0, 1, 2, 3), (0, 6, 10), (0,), tuple(range(STEPS)))
FLOOR = 100.0
"""Decibels beyond which rounding decides."""
schedulers = pytest.mark.parametrize("name", SCHEDULERS)


def deaf(name):
    """A model whose outputs do not answer to the state, so that nothing is left out."""
    walker = Gaussian(name, [0.02, 0.3, 1.4])
    walker.evaluate = lambda index, states, chunks=None: walker.outputs[index]
    return walker


@schedulers
def test_foretold_is_measured_where_outputs_do_not_answer(name):
    walker = deaf(name)
    foretold = Foretold(walker)
    for nodes in NODES:
        measured = fit(walker, nodes, along=False).decibels()
        told, measured = min(foretold.decibels(nodes), FLOOR), min(measured, FLOOR)
        assert told == pytest.approx(measured, abs=0.05), nodes
    assert foretold.decibels((0,)) < 60


@schedulers
def test_what_is_foretold_nearer_is_measured_nearer_where_outputs_answer(name):
    walker = Gaussian(name, [0.01, 0.05, 0.2, 0.5, 1.0, 2.0])
    foretold, rng = Foretold(walker), np.random.default_rng(0)
    drawn = {(0, *sorted(rng.choice(range(1, STEPS), 3, replace=False))) for _ in range(40)}
    schedules = sorted((tuple(map(int, nodes)) for nodes in drawn), key=foretold.decibels)
    measured = [fit(walker, nodes, along=False).decibels() for nodes in schedules]
    half = len(measured) // 2
    assert np.mean(measured[half:]) > np.mean(measured[:half]) + 1


def test_answers_are_by_how_much_outputs_change_for_a_change_of_the_state():
    """On one Gaussian direction an output is a multiple of the state: by that."""
    walker = Gaussian("flow euler", [0.5])
    states = {node: walker.state(node) * 1.01 + 0.02 for node in (2, 6)}
    stops = [(node, state, walker.evaluate(node, state)) for node, state in states.items()]
    slopes = [float((walker.outputs[n] / walker.states[n]).abs().mean()) for n in (2, 6)]
    found = Part(walker, 1).answers(stops)
    assert found[[2, 6]] == pytest.approx(slopes, rel=1e-6)
    assert found[4] == pytest.approx(np.mean(slopes)) and found[0] == found[2]
    assert Part(walker, 1).answers([(3, walker.state(3), walker.outputs[3])])[3] == 0


@schedulers
def test_descent_ends_where_no_shift_of_a_node_is_foretold_nearer(name):
    foretold = Foretold(Gaussian(name, [0.02, 0.3, 1.4]))
    start = (0, 1, 2, 3)
    end = foretold.descended(start)
    assert end[0] == 0 and len(end) == 4
    assert foretold.decibels(end) > foretold.decibels(start)
    best = max(foretold.decibels(nodes) for nodes in neighbours(end, STEPS))
    assert best <= foretold.decibels(end)


@schedulers
def test_candidates_are_walked_from_what_is_foretold_nearest(name):
    walker = Gaussian(name, [0.02, 0.3, 1.4])
    foretold = Foretold(walker)
    found = candidates(walker, 4, foretold)
    assert len(set(found)) == len(found) and all(len(nodes) == 4 for nodes in found)
    assert foretold.decibels(found[0]) == max(foretold.decibels(nodes) for nodes in found)
    assert (0, 3, 6, 9) in found, "even steps are among them"
