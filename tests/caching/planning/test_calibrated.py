"""Calibration from prompts to a plan: every effort, fields that are kept, runs that hardly vary."""

import numpy as np
import pytest
import torch

import accel
from accel.caching.planned import Planned
from accel.caching.planning.calibrated import FLOOR
from tests.tiny_pipelines import TINY, call, make

PROMPTS = ["a red circle", "a blue square", "a green triangle", "a pink circle"]


def calibrated(name, prompts=PROMPTS, method="planned", **how):
    pipe = make(name)
    return pipe, accel.calibrate(pipe, prompts, method, progress=False, **TINY[name].call, **how)


def latents(pipe, name, steps):
    return torch.cat(
        [
            call(pipe, name, steps=steps, prompt=p, seed=9 + i).float()
            for i, p in enumerate(PROMPTS[:2])
        ]
    )


def test_the_gradient_fit_is_told_of_samples_it_did_not_see_and_runs():
    seen = []

    def loss(state, true):
        seen.append(state.dtype)
        return (state - true)[:, 0].flatten(1).abs().mean(1)  # the closed form is of all channels

    pipe, made = calibrated("sd", steps=8, budget=2, effort="gradient", loss=loss)
    measured, (method,) = made.measured, made.methods
    assert measured["gradient_loss"] == "given" and set(seen) == {torch.float32}
    assert measured["gradient_rounds"] > 0 < measured["gradient_gain"]
    assert measured["held_out"] == 2 and all(any(row) for row in method.weights)
    assert len(measured["rule"]) == len(measured["error"]) == 2
    pipe.enable_acceleration(made)
    assert torch.isfinite(latents(pipe, "sd", 8)).all()


@pytest.mark.parametrize("effort", ["normal", "high", "gradient"])
def test_a_budget_of_every_step_is_the_plain_run_to_the_bit(effort):
    pipe, made = calibrated("wan", PROMPTS[:2], steps=5, budget=5, effort=effort)
    assert made.methods[0].nodes == tuple(range(5))
    plain = latents(pipe, "wan", 5)
    with accel.accelerated(pipe, made), pytest.warns(UserWarning, match="skipped nothing"):
        assert torch.equal(latents(pipe, "wan", 5), plain)


def test_fields_that_the_user_set_are_kept():
    _, made = calibrated("sd", steps=6, budget=3, method=Planned(correct=False, guard=False))
    (method,) = made.methods
    assert not method.correct and not method.guard and len(method.nodes) == 3
    _, made = calibrated("wan", steps=8, budget=6, method=Planned(carrier="residual"))
    assert made.methods[0].carrier == "residual"
    assert made.measured["budget"] == 6 and "cost" in made.measured
    with pytest.raises(ValueError, match="no carrier 'residual'; it has output"):
        calibrated("sd", steps=6, budget=3, method=Planned(carrier="residual"))
    with pytest.raises(ValueError, match="cost too much for a budget of 2 of 8 steps"):
        calibrated("wan", steps=8, budget=2, method=Planned(carrier="residual"))


def test_a_model_that_says_the_same_to_every_prompt_gets_a_plan_that_rounding_does_not_upset():
    pipe = make("wan")
    with torch.no_grad():
        for parameter in (pipe.transformer.proj_out.weight, pipe.transformer.proj_out.bias):
            parameter.fill_(0.0)
        pipe.transformer.proj_out.bias.fill_(0.25)
    made = accel.calibrate(pipe, PROMPTS, steps=6, budget=3, progress=False, **TINY["wan"].call)
    (method,) = made.methods
    assert method.limits[0] == 0 and min(method.limits[1:]) >= FLOOR
    assert np.isfinite([w for row in method.weights for w in row]).all()
    plain = latents(pipe, "wan", 6)
    pipe.enable_acceleration(made)
    torch.testing.assert_close(latents(pipe, "wan", 6), plain, atol=1e-4, rtol=1e-4)
    assert pipe.acceleration.report().computed_fraction == pytest.approx(0.5)
