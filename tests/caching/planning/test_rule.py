"""The rule between computed steps, and its fit, on outputs whose course is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from accel.caching.planning.fit import fitted_change
from accel.caching.planning.planner import fit
from accel.caching.planning.response import response
from accel.caching.planning.rule import extrapolated

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
STEPS = 12


def ready(kind):
    scheduler = (
        FlowMatchEulerDiscreteScheduler(shift=3.0)
        if kind == "euler"
        else UniPCMultistepScheduler(**FLOW)
    )
    scheduler.set_timesteps(STEPS)
    return response(scheduler, STEPS)


def walked(rule, first, outputs):
    state = first
    for i in range(len(rule.decay)):
        state = rule.decay[i] * state + rule.weights[i] @ outputs
    return state


@pytest.mark.parametrize("kind", ["euler", "unipc"])
@pytest.mark.parametrize("correct", [False, True])
def test_every_step_a_node_is_the_scheduler(kind, correct):
    found, outputs = ready(kind), np.random.default_rng(0).normal(size=STEPS)
    rule = extrapolated(found, range(STEPS), correct=correct)
    expected = found.start[-1] * 0.7 + found.outputs[-1] @ outputs
    assert walked(rule, 0.7, outputs) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_outputs_on_a_line_are_followed_exactly(kind):
    found, outputs = ready(kind), 2.0 - 0.3 * np.arange(STEPS)
    nodes = (0, 1, 5, 9)
    for correct in (False, True):
        rule = extrapolated(found, nodes, correct=correct)
        expected = found.start[-1] + found.outputs[-1] @ outputs
        assert walked(rule, 1.0, outputs[list(nodes)]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_correction_interpolates_what_was_forecast(kind):
    """From a bend at a node on, the forecast is off and the correction is exact."""
    found = ready(kind)
    nodes = (0, 1, 5, 6, 11)
    outputs = np.interp(np.arange(STEPS), [0, 1, 5, 6, 11], [1.0, 1.1, 3.0, 0.5, -1.0])
    expected = found.start[-1] + found.outputs[-1] @ outputs
    plain, right = (
        abs(walked(extrapolated(found, nodes, correct=c), 1.0, outputs[list(nodes)]) - expected)
        for c in (False, True)
    )
    assert right < 1e-5 < plain


def test_segments_add_up_to_the_run():
    rule = extrapolated(ready("unipc"), (0, 3, 7))
    outputs, state = np.array([0.3, -1.0, 2.0]), 0.4
    for j in range(3):
        kept, weights = rule.segment(j)
        state = kept * state + weights @ outputs
    assert state == pytest.approx(walked(rule, 0.4, outputs))


def test_an_adjustment_lands_at_the_end_of_its_segment():
    rule = extrapolated(ready("euler"), (0, 3, 7))
    change = np.array([0.2, -0.1, 0.0])
    kept, weights = rule.adjusted(1, change).segment(1)
    before = rule.segment(1)
    assert kept == before[0] and weights == pytest.approx(before[1] + change)
    assert (rule.adjusted(1, change).weights[:6] == rule.weights[:6]).all()


def test_fit_finds_the_weights_that_were_used():
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(4, 3, 5, generator=generator) for _ in range(3)]
    reached = torch.randn(4, 3, 5, generator=generator)
    target = reached + 0.5 * outputs[0] - 0.2 * outputs[2]
    found = fitted_change(reached, outputs, target)
    assert found.weights == pytest.approx([0.5, 0, -0.2], abs=1e-4)
    assert found.apart == pytest.approx(np.tile([0.5, 0, -0.2], (4, 1)), abs=1e-4)


def test_a_sample_is_fitted_on_the_others():
    """Sample i needs the weight i: the mean of the others is what it gets."""
    outputs = [torch.ones(4, 7)]
    target = torch.arange(4.0)[:, None].expand(4, 7)
    found = fitted_change(torch.zeros(4, 7), outputs, target, ridges=(1e-9,))
    assert found.weights == pytest.approx([1.5])
    assert found.apart[:, 0] == pytest.approx([2, 5 / 3, 4 / 3, 1])
    some = fitted_change(torch.zeros(4, 7), outputs, target, rows=[0, 1, 2], ridges=(1e-9,))
    assert some.weights == pytest.approx([1.0])
    assert some.apart[:, 0] == pytest.approx([1.5, 1, 0.5, 1])


def test_noise_is_not_fitted():
    """Where what is missing has nothing to do with the outputs, the prior stays."""
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    target = torch.randn(4, 6, generator=generator)
    prior = np.array([0.1, 0.0, -0.1])
    found = fitted_change(torch.zeros(4, 6), outputs, target, priors=[prior])
    assert found.weights == pytest.approx(prior)


def test_the_better_prior_is_taken():
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(4, 50, generator=generator) for _ in range(2)]
    noise = torch.randn(4, 50, generator=generator)
    target = 0.7 * outputs[0] + 0.01 * noise
    priors = [np.zeros(2), np.array([0.7, 0.0])]
    found = fitted_change(torch.zeros(4, 50), outputs, target, priors=priors, ridges=(np.inf,))
    assert found.weights == pytest.approx(priors[1])


def test_a_single_sample_is_fitted_gently():
    outputs = [torch.ones(1, 5), torch.zeros(1, 5)]
    found = fitted_change(torch.zeros(1, 5), outputs, torch.ones(1, 5))
    assert found.weights == pytest.approx([1, 0], abs=1e-3)
    assert found.apart == pytest.approx(found.weights[None])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_outputs_all_alike_do_not_blow_up(value):
    outputs = [torch.full((2, 6), value)] * 3
    found = fitted_change(torch.zeros(2, 6), outputs, torch.full((2, 6), 0.9 * value))
    assert found.weights.sum() == pytest.approx(0.9 * value, abs=1e-4)
    assert (np.abs(found.weights) <= 0.9 * value).all() and np.isfinite(found.apart).all()


class Gaussian:
    """A walker over data N(0, 1) under flow matching, whose velocity is known in closed form."""

    def __init__(self, kind, samples=6):
        self.response = ready(kind)
        sigmas = 3 * np.linspace(1, 1 / STEPS, STEPS) / (1 + 2 * np.linspace(1, 1 / STEPS, STEPS))
        self.slopes = (2 * sigmas - 1) / (sigmas**2 + (1 - sigmas) ** 2)
        state = torch.randn(samples, 16, generator=torch.Generator().manual_seed(1)).double()
        self.states, outputs = [state], []
        for i in range(STEPS):
            outputs.append(self.slopes[i] * self.states[-1])
            path = self.response.start[i + 1] * self.states[0]
            for j, output in enumerate(outputs):
                path = path + self.response.outputs[i + 1, j] * output
            self.states.append(path)
        self.first = outputs[0]

    def state(self, index):
        return self.states[index]

    def evaluate(self, index, states):
        return self.slopes[index] * states


@pytest.mark.parametrize("kind", ["euler", "unipc"])
def test_on_gaussian_data_the_fit_is_exact_on_samples_it_never_saw(kind):
    """Every state is a multiple of the first, so one weight a segment is enough."""
    walker, nodes = Gaussian(kind), (0, 3, 8)
    rough = fit(walker, nodes, range(3), fitted=False)
    exact = fit(walker, nodes, range(3))
    assert rough.errors.min() > 1e-2 and exact.errors.max() < 1e-4
    assert SimpleNamespace(**vars(exact)).nodes == nodes
    assert exact.decibels(range(3, 6)) > 80
