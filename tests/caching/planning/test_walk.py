"""Calibration on real pipelines: recorded runs, single steps from any state, the plan at work."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler

import accel
from accel.caching.planned import Planned
from accel.caching.planning.foretold import Foretold
from accel.caching.planning.gradient import Descent
from accel.caching.planning.planner import candidates, fit
from accel.caching.planning.search import search
from accel.caching.planning.walk import Walker
from tests.tiny_pipelines import TINY, call, make

STEPS = 8
PROMPTS = ["a red circle", "a blue square", "a green triangle", "a pink circle"]


def walker(pipe, name, chunks=2):
    per = len(PROMPTS) // chunks

    def run(chunk):
        rows = range(chunk * per, (chunk + 1) * per)
        prompts = [PROMPTS[i] for i in rows]
        return call(pipe, name, steps=STEPS, prompt=prompts, seed=list(rows))

    return Walker(pipe, run, chunks)


@pytest.mark.parametrize("name", ["sd", "wan", "flux", "cogvideox"])
def test_a_step_from_the_true_state_gives_the_true_output(name):
    pipe = make(name)
    with walker(pipe, name) as found:
        found.record()
        assert found.evaluations == STEPS * 4
        for index in (0, 3, STEPS - 1):
            output = found.evaluate(index, found.state(index))
            close = {"rtol": 1e-4, "atol": 1e-4 * float(output.abs().max())}
            torch.testing.assert_close(output, found.output(index), **close)
            after = found.response.decay(index) * found.state(index)
            if name in ("sd", "flux"):  # one-step solvers: the next state follows from this output
                after += found.response.increments(index)[index] * output
                scale = found.state(index + 1).abs().max()
                assert (after - found.state(index + 1)).abs().max() < 1e-4 * scale
        assert not pipe.acceleration


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("sd", "ddim"), ("sd", "dpm++"), ("wan", "flow_unipc"), ("wan", "flow_euler")],
)
def test_a_plan_runs_as_it_was_fitted(name, scheduler):
    pipe = make(name, scheduler)
    with walker(pipe, name) as found:
        found.record()
        fitted = fit(found, (0, 2, 3, 6), range(4))
        course = Descent(found, fitted).course(range(2))
        expected = course.states[-1]
    plan = Planned(nodes=fitted.nodes, steps=STEPS, weights=fitted.weights)
    pipe.enable_acceleration(plan)
    latents = call(pipe, name, steps=STEPS, prompt=PROMPTS, seed=[0, 1, 2, 3]).float()
    torch.testing.assert_close(
        latents, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
    )
    assert pipe.acceleration.report().computed_fraction == pytest.approx(0.5)


def test_chunks_make_no_difference_and_neither_does_a_second_search():
    plans = []
    for chunks in (1, 2, 2):
        pipe = make("sd")
        with walker(pipe, "sd", chunks) as found:
            found.record()
            plans.append(search(found, 4).best)
    assert plans[1].nodes == plans[2].nodes and plans[1].weights == plans[2].weights
    assert plans[0].nodes == plans[1].nodes
    assert plans[0].errors == pytest.approx(plans[1].errors, rel=1e-2)


def test_every_step_computed_is_the_plain_run_to_the_bit():
    pipe = make("wan")
    plain = call(pipe, "wan", steps=STEPS)
    with (
        accel.accelerated(pipe, Planned(nodes=tuple(range(STEPS)), steps=STEPS)),
        pytest.warns(UserWarning, match="skipped nothing"),
    ):
        assert torch.equal(call(pipe, "wan", steps=STEPS), plain)


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_a_calibrated_plan_of_every_step_is_the_plain_run_to_the_bit(name):
    pipe = make(name)
    plain = call(pipe, name, steps=5)
    how = {**TINY[name].call, "guidance_scale": 4.0, "negative_prompt": "blue"}
    plan = accel.calibrate(pipe, PROMPTS[:2], steps=5, budget=5, progress=False, **how)
    pipe.enable_acceleration(plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is skipped
        assert torch.equal(call(pipe, name, steps=5), plain)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_prompt_and_a_constant_output_give_a_plan_that_runs(value):
    pipe = make("sd")
    last = pipe.unet.conv_out
    last.weight.data.zero_()
    last.bias.data.fill_(value)
    plan = accel.calibrate(
        pipe, PROMPTS[:1], steps=STEPS, budget=3, progress=False, **TINY["sd"].call
    )
    (method,) = plan.methods
    assert len(method.nodes) == 3 and np.isfinite([w for row in method.weights for w in row]).all()
    assert np.isfinite(plan.measured["held_out_db"])
    plain = call(pipe, "sd", steps=STEPS, guidance=7.5, negative_prompt=None)
    pipe.enable_acceleration(plan)
    latents = call(pipe, "sd", steps=STEPS, guidance=7.5, negative_prompt=None)
    torch.testing.assert_close(latents, plain, rtol=1e-3, atol=1e-3)


def test_one_prompt_and_few_samples_still_give_a_plan():
    pipe = make("sd")
    with Walker(pipe, lambda c: call(pipe, "sd", steps=STEPS), 1) as found:
        found.record()
        assert all(nodes[0] == 0 for nodes in candidates(found, 4, Foretold(found)))
        assert torch.isfinite(torch.tensor(search(found, 4).best.errors)).all()


def test_without_nodes_the_command_is_named():
    pipe = make("sd")
    with pytest.raises(ValueError, match="accel calibrate --for planned"):
        pipe.enable_acceleration(Planned())
    assert not pipe.acceleration
    with pytest.raises(ValueError, match=r"Planned\.nodes must be rising"):
        Planned(nodes=(1, 2))


def test_other_step_counts_take_the_nearest_levels():
    plan = Planned(nodes=(0, 4, 8), steps=10, sigmas=tuple(1 - i / 10 for i in range(10)))
    assert plan.at(10, [None] * 10) == (0, 4, 8)
    assert plan.at(20, [1 - i / 20 for i in range(20)]) == (0, 3, 6, 10, 13, 16)
    assert Planned(nodes=(0, 4, 8), steps=10).at(5, [None] * 5) == (0, 4)
    pipe = make("sd")
    pipe.enable_acceleration(plan)
    call(pipe, "sd", steps=5)
    rows = pipe.acceleration.report().rows
    assert next(r.index for r in rows if r.action == "computed") == 0


def test_a_second_order_solver_is_planned_by_its_evaluations():
    pipe = make("sd")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    options = {"height": 32, "width": 32}
    made = accel.calibrate(pipe, PROMPTS[:2], steps=5, budget=4, progress=False, **options)
    assert made.methods[0].steps == 9 and len(made.methods[0].nodes) == 4
    pipe.enable_acceleration(made)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it is the run the plan was made for
        pipe(PROMPTS[0], num_inference_steps=5, output_type="latent", **options)
    assert pipe.acceleration.report().computed_fraction == pytest.approx(4 / 9)
