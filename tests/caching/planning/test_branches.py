"""Branches of guidance planned apart, one after the other or in one batch."""

import pytest
import torch

from accel.caching.planned import Planned
from accel.caching.planning.apart import fit_apart, splits
from accel.caching.planning.branches import Differences
from accel.caching.planning.walk import Walker
from tests.tiny_pipelines import call, make

STEPS = 8
NODES, BOTH = (0, 1, 3, 5, 7), (0, 1, 5)
PLAN = Planned(nodes=NODES, steps=STEPS, guidance=BOTH)


def run(name, plan, **arguments):
    pipe = make(name)
    pipe.enable_acceleration(plan)
    return call(pipe, name, steps=STEPS, **arguments), pipe.acceleration.report()


def test_the_difference_lies_on_the_line_through_the_last_two():
    found = Differences()
    found.keep(1, [torch.tensor([1.0])])
    assert found.guess(2)[0].item() == 1
    found.keep(3, [torch.tensor([2.0])])
    found.keep(4, [torch.tensor([4.0])])
    assert found.guess(6)[0].item() == pytest.approx(8)
    assert found.bytes() == 8


@pytest.mark.parametrize("name", ["wan", "sd", "cogvideox"])
def test_the_conditional_branch_is_evaluated_alone(name):
    """Of separate branches one call is left out, of a batch of both half of it."""
    latents, report = run(name, PLAN)
    assert report.computed_fraction == pytest.approx((5 + 3) / 2 / STEPS, rel=0.02)
    halves = {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.5, 4: 0.0, 5: 1.0, 6: 0.0, 7: 0.5}
    for index, share in halves.items():
        work = [row.work for row in report.rows if row.index == index]
        assert sum(work) / len(work) == pytest.approx(share, abs=0.03)
    whole, _ = run(name, Planned(nodes=NODES, steps=STEPS))
    assert not torch.allclose(latents, whole, atol=1e-3)
    every, _ = run(name, Planned(nodes=NODES, steps=STEPS, guidance=NODES))
    assert torch.equal(every, whole)


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_a_guess_that_is_right_changes_nothing(name):
    """At the step after it, a difference that is held by the model is guessed exactly."""
    pipe = make(name)
    denoiser = pipe.unet if name == "sd" else pipe.transformer
    forward, seen = type(denoiser).forward, []

    def constant(*args, **kwargs):
        (value,) = forward(denoiser, *args, **kwargs)
        seen.append(len(value))
        first = torch.ones_like(value)
        if name == "sd":
            first[: len(value) // 2] = 0 if len(value) > 1 else 1  # [uncond, cond]
        elif len(seen) % 2 == 0:
            first = first * 0
        return (first,)

    denoiser.forward = constant
    plan = Planned(nodes=(0, 1, 2, 3), steps=4, guidance=(0, 1, 2, 3))
    pipe.enable_acceleration(plan)
    with pytest.warns(UserWarning, match="skipped nothing"):
        whole = call(pipe, name, steps=4)
    pipe.disable_acceleration()
    seen.clear()
    pipe.enable_acceleration(Planned(nodes=(0, 1, 2, 3), steps=4, guidance=(0, 1, 2)))
    apart = call(pipe, name, steps=4)
    assert len(seen) == (4 if name == "sd" else 7) and (name == "wan" or seen[-1] == 1)
    torch.testing.assert_close(apart, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_a_split_plan_is_fitted_as_it_runs(name):
    pipe = make(name)

    def one(chunk):
        return call(pipe, name, steps=STEPS, prompt="a red circle", seed=5)

    with Walker(pipe, one, 1) as walker:
        walker.record(inside=True)
        assert walker.guidance.shape == (1, STEPS, STEPS)
        for nodes, both in splits(walker, 5):
            assert len(nodes) + len(both) == 10 and set(both) < set(nodes) and both[0] == 0
        before = walker.evaluations
        fitted = fit_apart(walker, NODES, BOTH)
        assert walker.evaluations - before == 3 + 2 / 2
        true = walker.state(STEPS)
    plan = Planned(nodes=NODES, steps=STEPS, weights=fitted.weights, guidance=BOTH)
    pipe.enable_acceleration(plan)
    error = (one(0).float() - true).square().mean().sqrt()
    assert float(error) == pytest.approx(float(fitted.errors[0]), rel=1e-2, abs=1e-4)


def test_without_guidance_and_in_other_lengths_nothing_is_left_out():
    alone, _ = run("wan", PLAN, guidance=1.0)
    assert torch.equal(alone, run("wan", Planned(nodes=NODES, steps=STEPS), guidance=1.0)[0])
    pipe = make("sd")
    pipe.enable_acceleration(PLAN)
    call(pipe, "sd", steps=6)
    assert {round(row.work, 2) for row in pipe.acceleration.report().rows} == {0.0, 1.0}
    with pytest.raises(ValueError, match="empty, or some of `nodes`, with 0"):
        Planned(nodes=(0, 1), steps=5, guidance=(1,))
