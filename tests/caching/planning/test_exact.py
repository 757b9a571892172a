"""Plans on models whose best plan is known, with every kind of scheduler and prediction."""

from functools import partial

import numpy as np
import pytest
import torch

from accel.caching.planning import planner
from accel.caching.planning import search as searching
from accel.caching.planning.fit import fitted_change
from accel.caching.planning.gram import Gram
from accel.caching.planning.planner import fit
from accel.caching.planning.rule import extrapolated
from accel.caching.planning.search import Search, search
from tests.caching.planning.analytic import SCHEDULERS, STEPS, Exact, Gaussian, walked

NODES = (0, 2, 5, 8)
schedulers = pytest.mark.parametrize("name", SCHEDULERS)


def error(walker, state, rows):
    off = (state - walker.state(STEPS)[rows]).square().mean().sqrt()
    return float(off / walker.state(STEPS)[rows].square().mean().sqrt())


def rule_of(walker, nodes):
    return extrapolated(walker.response, nodes, correct=True)


@schedulers
def test_on_gaussian_data_one_weight_a_segment_is_exact(name):
    """Every state is a multiple of the first: on samples that were not fitted to, too."""
    walker = Gaussian(name, [0.5])
    found = fit(walker, NODES, range(3))
    arguments = walker.response, NODES
    last = walked(*arguments, found.weights, rule_of(walker, NODES), walker, [3, 4, 5])
    rough = walked(*arguments, (), rule_of(walker, NODES), walker, [3, 4, 5])
    assert error(walker, last, [3, 4, 5]) < 1e-3 < error(walker, rough, [3, 4, 5])
    assert found.decibels([3, 4, 5]) > 60


@schedulers
def test_the_first_weight_is_the_known_best(name):
    """Two variances cannot both be met by one output: least squares says what is nearest."""
    walker = Gaussian(name, [0.1, 0.5])
    kept, prior = rule_of(walker, NODES).segment(0)
    output, start, target = walker.first, walker.state(0), walker.state(NODES[1])
    best = float((output * (target - kept * start)).sum() / output.square().sum())
    found = fit(walker, NODES).weights[0]
    assert prior[0] + found[0] == pytest.approx(best, rel=2e-3)


@schedulers
def test_a_linear_velocity_with_enough_nodes_is_exact(name):
    """Two directions need two outputs: from the second node on every segment ends right."""
    walker = Gaussian(name, [0.05, 0.6])
    few, enough = fit(walker, (0,)), fit(walker, NODES)
    assert few.decibels() < 40 < 60 < enough.decibels()


@pytest.fixture
def no_ridge(monkeypatch):
    """Of ridges only one below what rounding gives."""
    monkeypatch.setattr(planner, "fitted_change", partial(fitted_change, ridges=(1e-14,)))


def test_a_linear_velocity_with_enough_nodes_is_exact_to_rounding(no_ridge):
    walker = Exact([0.05, 0.6])
    found = fit(walker, NODES)
    assert found.stages[0] > 1e-3  # one output for two directions
    assert max(found.stages[1:]) < 1e-12
    last = walked(walker.response, NODES, found.weights, rule_of(walker, NODES), walker, range(6))
    assert error(walker, last, range(6)) < 1e-12
    assert min(fit(walker, (0,)).stages) > 1e-2


def known_best(walker, nodes):
    """Whole weights of every segment by least squares, on the path that they lead along."""
    state, outputs, found = walker.state(0), [], []
    for node, end in zip(nodes, (*nodes[1:], STEPS), strict=True):
        outputs.append(walker.evaluate(node, state))
        kept = float(walker.response.start[end] / walker.response.start[node])
        columns = torch.stack([o.flatten() for o in outputs], dim=1).numpy()
        missing = (walker.state(end) - kept * state).flatten().numpy()
        found.append(np.linalg.lstsq(columns, missing, rcond=None)[0])
        state = kept * state + torch.from_numpy(columns @ found[-1]).reshape(state.shape)
    return found


@pytest.mark.parametrize("name", ["exact", *SCHEDULERS])
def test_all_weights_are_the_known_best(name, no_ridge):
    """As many directions as nodes, so that no output is a combination of the others."""
    variances, nodes = [0.05, 0.5, 3.0], (0, 3, 7)
    exact = name == "exact"
    walker = Exact(variances) if exact else Gaussian(name, variances, even=True)
    fitted, rule = fit(walker, nodes), rule_of(walker, nodes)
    for j, best in enumerate(known_best(walker, nodes)):
        found = rule.segment(j)[1][: j + 1].copy()
        found[j - np.arange(j + 1)] += fitted.weights[j]
        assert found == pytest.approx(best, rel=1e-8 if exact else 1e-5)


@schedulers
def test_every_step_a_node_needs_no_weights(name):
    walker = Gaussian(name, [0.1, 0.5])
    nodes = tuple(range(STEPS))
    last = walked(walker.response, nodes, (), rule_of(walker, nodes), walker, range(6))
    assert error(walker, last, range(6)) < 1e-4


@pytest.mark.parametrize("name", ["flow euler", "noise unipc"])
def test_searches_are_the_same_twice_and_within_their_ceiling(name):
    found = []
    for _ in range(2):
        walker = Gaussian(name, [0.1, 0.3, 0.9])
        walker.guidance = None
        found.append(search(walker, 4, "high"))
    first, second = (f.best for f in found)
    assert first.nodes == second.nodes and first.weights == second.weights
    assert len(found[0].tried) > 3
    assert first.decibels() == max(f.decibels() for f in found[0].tried.values())


class Counted(Gaussian):
    """Its evaluations count, those of the full runs too, as a pipeline's do."""

    guidance, evaluations = None, 0

    def evaluate(self, index, states, chunks=None):
        self.evaluations += len(states)
        return super().evaluate(index, states, chunks)


def test_more_effort_goes_on_from_what_less_does(monkeypatch):
    """What a few samples tell, which at half of the steps effort "normal" cannot pay for, may lead
    to other schedules: those come after."""
    first, later = (0, 2, 4, 6, 8, 10), (0, 1, 2, 3, 4, 5)

    def told(walker, budget, foretold):
        return [later if foretold._answers.any() else first]

    monkeypatch.setattr(searching, "candidates", told)
    shares = []
    less, more = (
        search(Counted("flow euler", [0.1, 0.9]), 6, effort, progress=shares.append)
        for effort in ("normal", "high")
    )
    assert list(less.tried) == [first] and not less.taught
    assert list(more.tried)[:2] == [first, later] and more.taught
    assert more.best.decibels() > less.best.decibels()
    assert shares[1:] == sorted(shares[1:])


@schedulers
def test_the_last_segment_alone_takes_back_what_all_before_were_off_by(name):
    """On the way nothing is fitted, and samples that were not fitted to end near all the same."""
    walker = Gaussian(name, [0.1, 0.3, 0.9])
    plain = fit(walker, NODES, fitted=False)
    last = fit(walker, NODES, range(3), along=False)
    assert [len(row) for row in last.weights] == [0, 0, 0, 4]
    assert last.stages[:-1] == plain.stages[:-1]
    assert last.decibels([3, 4, 5]) > plain.decibels([3, 4, 5]) + 10
    state = walked(walker.response, NODES, last.weights, rule_of(walker, NODES), walker, [3, 4, 5])
    off = (state - walker.state(STEPS)[3:]).square().mean(1).sqrt().numpy()
    assert off == pytest.approx(last.errors[3:], rel=1e-3)


def test_segments_that_end_nearer_are_not_fitted_where_the_run_ends_farther():
    """Every segment but the last ends nearer once it is fitted, and yet the last state is off."""
    walker = Gaussian("flow euler", [0.1, 0.3, 0.9])
    along, last = fit(walker, NODES), fit(walker, NODES, along=False)
    assert all(a < b for a, b in zip(along.stages[:-1], last.stages[:-1], strict=True))
    assert along.decibels() < last.decibels()
    found = Search(walker)
    found.measure(NODES)
    assert found.judged().weights == last.weights and not found.along
    assert found.kinds == (last.decibels(), along.decibels())
    found.measure((0, 2, 5, 9))
    assert [len(row) for row in found.tried[0, 2, 5, 9].weights] == [0, 0, 0, 4]


def test_segments_are_fitted_where_the_run_ends_nearer_and_that_can_be_paid_for():
    walker = Gaussian("noise ddim", [0.1, 0.3, 0.9])
    found = Search(walker)
    last = found.measure(NODES)
    ceiling, found.ceiling = found.ceiling, walker.evaluations
    assert found.judged() is last and found.kinds is None
    found.ceiling = ceiling
    assert found.judged().decibels() > last.decibels() and found.along
    found.measure((0, 2, 5, 9))
    assert all(found.tried[0, 2, 5, 9].weights)


def constant(value):
    """A model whose outputs never change."""
    walker = Gaussian("flow euler", [0.5])
    walker.evaluate = lambda index, states, chunks=None: torch.full_like(states, value)
    walker.first = walker.evaluate(0, walker.state(0))
    walker.outputs = [walker.first] * STEPS
    steps = [walker.response.outputs[i + 1].sum() * value for i in range(STEPS)]
    walker.states = [walker.state(0), *(walker.state(0) + s for s in steps)]
    walker.gram, walker.guidance = Gram(STEPS), None
    for sample in range(len(walker.first)):
        walker.gram.add(torch.stack([output[sample] for output in walker.outputs]))
    return walker


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_outputs_leave_a_plan_as_it_is(value):
    found = fit(constant(value), NODES)
    assert max(abs(w) for row in found.weights for w in row) < 1e-3
    assert found.errors.max() < 1e-4 and np.isfinite(found.surprises).all()


@pytest.mark.parametrize("effort", ["normal", "high"])
@pytest.mark.parametrize("kind", ["zero", "one", "one sample"])
def test_a_search_on_degenerate_data_does_not_blow_up(kind, effort):
    if kind == "one sample":
        walker = Gaussian("flow unipc", [0.1, 0.5], samples=1)
        walker.guidance = None
    else:
        walker = constant(float(kind == "one"))
    found = search(walker, 4, effort).best
    assert len(found.nodes) == 4 and found.nodes[0] == 0
    assert np.isfinite(found.errors).all() and np.isfinite(found.surprises).all()
    assert max((abs(w) for row in found.weights for w in row), default=0.0) < 10
    assert found.errors.max() < (0.1 if kind == "one sample" else 1e-4)


def test_samples_all_alike_do_not_blow_up():
    walker = Gaussian("flow unipc", [0.1, 0.5])
    for states in (walker.states, walker.outputs):
        states[:] = [s[:1].repeat(6, 1) for s in states]
    walker.first = walker.outputs[0]
    found = fit(walker, NODES)
    assert np.isfinite(found.errors).all()
    assert max(abs(w) for row in found.weights for w in row) < 10
