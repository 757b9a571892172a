"""Gradient fitting: the gradient is the slope of the loss, and descent lowers it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from accel.caching.planning import gradient
from accel.caching.planning.gradient import Descent, refined
from accel.caching.planning.planner import fit
from accel.caching.planning.response import response
from accel.caching.planning.walk import Walker
from tests.tiny_pipelines import call, make

STEPS, NODES = 12, (0, 3, 5, 9)


class Curved:
    """A walker over a velocity that is not linear, in chunks of two samples."""

    def __init__(self, chunks=4):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(STEPS)
        self.response, self.chunks, self.evaluations = response(scheduler, STEPS), chunks, 0
        state = torch.randn(2 * chunks, 90, generator=torch.Generator().manual_seed(1)).double()
        self.states, outputs = [state], []
        for i in range(STEPS):
            outputs.append(self.velocity(i, self.states[-1]))
            path = self.response.start[i + 1] * self.states[0]
            for j, output in enumerate(outputs):
                path = path + self.response.outputs[i + 1, j] * output
            self.states.append(path)
        self.first = outputs[0]

    def velocity(self, index, states):
        return torch.sin(2 * states + index / 3) + 0.3 * states.roll(1, -1)

    def rows(self, chunks=None):
        return [
            r
            for c in (range(self.chunks) if chunks is None else chunks)
            for r in (2 * c, 2 * c + 1)
        ]

    def state(self, index):
        return self.states[index]

    def evaluate(self, index, states, chunks=None):
        return self.velocity(index, states)

    def pulled(self, index, states, pull, chunks=None):
        leaf = states.clone().requires_grad_()
        return torch.autograd.grad(self.velocity(index, leaf), leaf, pull)[0]


def test_the_gradient_is_the_slope_of_the_loss():
    walker, chunks = Curved(), [0, 2]
    descent = Descent(walker, fit(walker, NODES))
    found = descent.gradient(descent.course(chunks), chunks)
    for j in range(len(NODES)):
        for m in range(len(descent.changes[j])):
            losses = []
            for shift in (1e-5, -1e-5):
                descent.changes[j][m] += shift
                losses.append(float(descent.losses(descent.course(chunks), chunks).mean()))
                descent.changes[j][m] -= shift
            slope = (losses[0] - losses[1]) / 2e-5
            assert found[j][m] == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_descent_gains_on_samples_it_was_not_given():
    walker = Curved(chunks=8)
    closed = fit(walker, NODES)
    found, measured = refined(walker, closed, rounds=8)
    assert measured["gradient_gain"] > 0 < measured["gradient_rounds"]
    assert found.nodes == NODES and found.weights != closed.weights
    trial, chunks = Descent(walker, closed), range(8)
    before = trial.losses(trial.course(chunks), chunks).mean()
    final = Descent(walker, found)
    assert final.losses(final.course(chunks), chunks).mean() < before
    # what is told is of the held half, which the closed form was fitted on, but not the descent
    held = [1, 3, 5, 7]
    known, after = (float(d.losses(d.course(held), held).mean()) for d in (trial, final))
    gained = 10 / np.log(10) * (known - after)
    assert len(found.errors) == 8 and measured["gradient_gain"] == pytest.approx(gained, abs=1e-6)
    assert found.decibels() == pytest.approx(20 * np.log10(2) - 10 / np.log(10) * after, abs=1e-6)
    assert found.stages[-1] == pytest.approx(np.sqrt((found.errors**2).mean()))


def test_no_move_is_kept_after_which_the_loss_is_higher(monkeypatch):
    walker, chunks = Curved(), [0, 2]
    monkeypatch.setattr(gradient, "PACE", 1.0)  # beyond where the slope tells anything
    descent, seen = Descent(walker, fit(walker, NODES)), []

    def watch(done):
        seen.append(float(descent.losses(descent.course(chunks), chunks).mean()))
        return done < 5

    watch(0)
    descent.run(chunks, 12, watch)
    assert len(seen) == 6 and seen == sorted(seen, reverse=True) and seen[-1] < seen[0] - 0.1
    monkeypatch.setattr(Descent, "gradient", uphill(Descent.gradient))
    before = descent.changes
    descent.run(chunks, 12, watch)
    assert len(seen) == 6 and descent.changes is before


def uphill(gradient):
    return lambda self, course, chunks: [-slope for slope in gradient(self, course, chunks)]


def test_a_plan_that_the_held_half_is_nearer_with_stays(monkeypatch):
    walker = Curved(chunks=8)
    closed = fit(walker, NODES)
    flat = lambda self, *_: [np.zeros_like(change) for change in self.changes]  # noqa: E731
    for wrong in (uphill(Descent.gradient), flat):
        monkeypatch.setattr(Descent, "gradient", wrong)
        found, measured = refined(walker, closed)
        assert found is closed and measured == {"gradient_rounds": 0, "gradient_gain": 0.0}


def test_descent_ends_when_the_held_half_comes_no_nearer():
    walker, rounds = Curved(chunks=2), []
    held = walker.states[-1][2:]

    def loss(state, true):
        near = (state - true).square().mean(1)
        return torch.ones(len(state)) if true.equal(held) else near

    closed = fit(walker, NODES)
    found, _ = refined(walker, closed, loss, rounds=50, progress=rounds.append)
    assert found is closed and len(rounds) == 1 + gradient.PATIENCE


@pytest.mark.parametrize(("after", "taken"), [((0.0, 1.1), False), ((0.4, 0.6), True)])
def test_a_gain_must_exceed_its_standard_error(after, taken):
    walker, calls = Curved(chunks=2), []
    closed, held = fit(walker, NODES), walker.states[-1][2:]
    plain = Descent(walker, closed).course([1]).states[-1]

    def loss(state, true):
        if not true.equal(held):
            return (state - true).square().mean(1)
        calls.append(0)
        known = len(calls) == 1 or state.equal(plain)
        return torch.ones(2) if known else torch.tensor(after)

    found, measured = refined(walker, closed, loss)
    assert (found is not closed) == taken == (measured["gradient_rounds"] > 0)
    assert measured["gradient_gain"] == pytest.approx(0.5 if taken else 0.0)


def test_the_gradient_reaches_segments_that_the_closed_form_left_alone():
    walker = Curved(chunks=8)
    closed = fit(walker, NODES, along=False)
    found, measured = refined(walker, closed, rounds=8)
    assert not any(closed.weights[:-1]) and all(any(row) for row in found.weights)
    assert measured["gradient_gain"] > 0


def test_one_chunk_cannot_be_judged_and_a_loss_of_ones_own_is_taken():
    walker = Curved(chunks=1)
    closed = fit(walker, NODES)
    assert refined(walker, closed) == (closed, {"gradient_rounds": 0, "gradient_gain": 0.0})
    walker, seen = Curved(chunks=2), []

    def loss(state, true):
        seen.append(state.requires_grad)
        return (state - true).abs().mean(1)

    _, measured = refined(walker, fit(walker, NODES), loss, rounds=2)
    assert any(seen) and not all(seen) and "gradient_gain" in measured


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_a_pull_goes_through_the_pipeline(name):
    pipe = make(name)

    def run(chunk):
        return call(pipe, name, steps=4, prompt="a red circle", seed=chunk)

    with Walker(pipe, run, 2) as walker:
        walker.record()
        states = walker.state(2)
        generator = torch.Generator().manual_seed(0)
        way, pull = (torch.randn(states.shape, generator=generator) for _ in range(2))
        found = (walker.pulled(2, states, pull) * way).sum()
        ahead, back = (walker.evaluate(2, states + shift * way) for shift in (1e-2, -1e-2))
        assert not torch.is_grad_enabled() or not ahead.requires_grad
        slope = (pull * (ahead - back)).sum() / 2e-2
        torch.testing.assert_close(found, slope, rtol=2e-2, atol=2e-2 * float(pull.norm()))
        one = walker.pulled(2, states[1:], pull[1:], [1])
        torch.testing.assert_close(one, walker.pulled(2, states, pull)[1:], rtol=1e-4, atol=1e-5)
    assert all(
        p.grad is None
        for p in pipe.components["unet" if name == "sd" else "transformer"].parameters()
    )
    assert SimpleNamespace(enabled=torch.is_grad_enabled()).enabled
