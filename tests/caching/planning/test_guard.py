"""The guard: samples that are not what the plan took them for get a step more, and come back."""

import pytest
import torch

import accel
from accel.caching.planned import Planned
from accel.caching.planning.planner import fit
from accel.caching.planning.surprise import surprise
from accel.caching.planning.walk import Walker
from tests.tiny_pipelines import call, make

STEPS = 10
NODES = (0, 2, 6, 9)
PROMPTS = ["a red circle moving left on a dark background", "a blue square"]
FAR, NEAR = (9.0,) * 4, (0.0,) * 4


def run(name, plan, prompts=PROMPTS, seed=(3, 4)):
    pipe = make(name)
    pipe.enable_acceleration(plan)
    seed = seed[0] if len(prompts) == 1 else list(seed)
    latents = call(pipe, name, steps=STEPS, prompt=list(prompts), seed=seed)
    return latents, pipe.acceleration.report()


def computed(report):
    return sorted({row.index for row in report.rows if row.action == "computed"})


def plan(**fields):
    return Planned(nodes=NODES, steps=STEPS, **fields)


def test_what_a_plan_does_not_compute_is_told_as_forecast():
    rows = run("wan", plan(), PROMPTS[:1])[1].rows
    told = {(row.index, row.action) for row in rows}
    assert told == {(i, "computed" if i in NODES else "forecast") for i in range(STEPS)}


def test_a_surprise_is_the_distance_from_the_line_through_the_last_two():
    outputs = [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])]
    off = surprise(torch.tensor([[4.0, 3.0]]), 4, outputs[::-1], [2, 0])
    assert off.item() == pytest.approx((1 + 9) ** 0.5 / 5)
    assert surprise(torch.zeros(1, 2), 4, [torch.zeros(1, 2)], [0]).item() == 0


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_inside_its_range_a_run_keeps_to_the_plan(name):
    weights = ((0.01,), (0.0, 0.02), (0.01, 0.0, -0.02), (0.0,))
    kept, report = run(name, plan(weights=weights, limits=FAR))
    assert torch.equal(kept, run(name, plan(weights=weights))[0])
    assert computed(report) == list(NODES) and report.counts == {}


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_outside_the_middle_of_the_coming_segment_is_computed(name):
    """The first node has no forecast, and the last leaves nothing to compute."""
    left, report = run(name, plan(limits=NEAR))
    wider = (0, 2, 4, 6, 7, 9)
    assert computed(report) == list(wider)
    assert report.counts == {"steps computed by the guard": 2}
    assert "2 steps computed by the guard" in report.summary()
    expected = run(name, Planned(nodes=wider, steps=STEPS))[0]
    torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-4)
    off, report = run(name, plan(limits=NEAR, guard=False))
    assert computed(report) == list(NODES) and torch.equal(off, run(name, plan())[0])


def test_back_in_the_plan_its_weights_serve_again():
    weights = ((0.01,), (0.0, 0.02), (0.3, 0.0, -0.2), (0.2, -0.1))
    limits = (9.0, 0.0, 9.0, 9.0)
    left, _ = run("sd", plan(weights=weights, limits=limits))
    assert not torch.allclose(left, run("sd", plan(weights=weights))[0], atol=1e-3)
    wide = ((0.01,), (), (), (0.3, 0.0, 0.0, -0.2), (0.2, -0.1))
    expected, _ = run("sd", Planned(nodes=(0, 2, 4, 6, 9), steps=STEPS, weights=wide))
    torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_samples_of_a_batch_leave_apart(name):
    pipe = make(name)

    def both(chunk):
        return call(pipe, name, steps=STEPS, prompt=PROMPTS, seed=[3, 4])

    with Walker(pipe, both, 1) as walker:
        walker.record()
        first, second = fit(walker, NODES, fitted=False).surprises[1]
    limits = (9.0, (first + second) / 2, 9.0, 9.0)
    together, report = run(name, plan(limits=limits))
    assert computed(report) == [0, 2, 4, 6, 9] and report.counts[next(iter(report.counts))] == 1
    for i in range(2):
        alone, own = run(name, plan(limits=limits), PROMPTS[i : i + 1], (3 + i,))
        assert (len(computed(own)) == 5) == ((first, second)[i] > limits[1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-3, atol=1e-3)


def test_runs_of_another_length_have_no_range():
    pipe = make("sd")
    pipe.enable_acceleration(plan(limits=NEAR))
    call(pipe, "sd", steps=STEPS - 2)
    assert pipe.acceleration.report().counts == {}


def test_limits_come_from_calibration():
    pipe = make("sd")
    prompts = ["a red circle", "a blue square"]
    made = accel.calibrate(pipe, prompts, steps=8, budget=4, progress=False, height=32, width=32)
    (method,) = made.methods
    assert len(method.limits) == 4 and method.limits[0] == 0 < method.limits[1]
    assert made.measured["cost"] <= 1.5 * 2 and made.measured["held_out"] == 2
    assert f"{made.measured['cost']:.1f} full runs" in made.note
    with pytest.raises(ValueError, match=r"Planned\.limits must be empty, or as long as nodes"):
        Planned(nodes=(0, 1), limits=(1.0,))
