"""Calibration: what is fitted is what plain hooks see, and a plan says what it was made for."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch

import accel
from accel.caching import FirstBlockCache, MagCache, TeaCache
from accel.prompts import GENERIC, drawn
from tests.caching.stack import Stack, change, hold
from tests.tiny_pipelines import PROMPT, TINY, call, make

PROMPTS = (PROMPT, "a blue square on a light background")


def settings(name, steps):
    return {**TINY[name].call, "num_inference_steps": steps, "guidance_scale": 4.0}


def calibrated(name, method, steps=6, prompts=PROMPTS):
    pipe = make(name)
    plan = accel.calibrate(pipe, prompts, method, progress=False, **settings(name, steps))
    return pipe, plan


def observe(name, steps, see):
    """Let `see(stack, output)` look at every call of the denoiser, in plain runs of all prompts."""
    for seed, prompt in enumerate(PROMPTS):
        stack = Stack(name)
        first = stack.blocks[0]
        stack.watch("modulated", first.attn1)
        stack.overwrite(lambda: True, hold)

        def finished(module, args, output, stack=stack):
            see(stack, output[0])

        stack.hooks.append(stack.pipe.transformer.register_forward_hook(finished))
        generator = torch.Generator().manual_seed(seed)
        stack.pipe(
            prompt=prompt, generator=generator, output_type="latent", **settings(name, steps)
        )


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_ratios_are_the_mean_over_samples_of_each_step(name):
    steps, found = 5, {}

    def see(stack, output):
        added = stack.added[stack.branch]
        if len(added) > 1:
            ratio = (added[0][1].norm(dim=-1) / added[1][1].norm(dim=-1)).mean()
            found.setdefault((stack.branch, stack.step), []).append(float(ratio))

    observe(name, steps, see)
    (method,) = calibrated(name, "magcache", steps)[1].methods
    assert (method.uncond is None) == (name == "cogvideox")
    for branch, ratios in enumerate(r for r in (method.ratios, method.uncond) if r):
        expected = [1.0, *(np.mean(found[branch, step]) for step in range(1, steps))]
        np.testing.assert_allclose(ratios, expected, rtol=1e-4, atol=1e-5)


def test_the_polynomial_is_the_fit_of_output_changes_to_indicator_changes():
    steps, points = 6, []

    def see(stack, output):
        old = stack.seen.get(stack.branch)
        now = stack.seen["modulated"], output.clone()
        if old is not None:
            points.append([change(new, before) for new, before in zip(now, old, strict=True)])
        stack.seen[stack.branch] = now

    observe("wan", steps, see)
    (method,) = calibrated("wan", TeaCache(threshold=0.07, warmup=2), steps)[1].methods
    assert (method.threshold, method.warmup, method.indicator) == (0.07, 2, "modulated")
    x, y = np.array(points).T
    assert len(x) == 2 * 2 * (steps - 1)
    expected = np.polyval(np.polyfit(x, y, 4), x)
    np.testing.assert_allclose(np.polyval(method.coefficients, x), expected, rtol=1e-3, atol=1e-5)


def test_the_plan_is_saved_enabled_and_says_what_it_was_made_for(tmp_path):
    pipe, plan = calibrated("wan", "MagCache")
    made_for = {
        "model": "WanPipeline",
        "scheduler": "UniPCMultistepScheduler",
        "prediction": "flow_prediction",
        "lora": "none",
        "steps": 6,
        "guidance": 4.0,
    }
    assert made_for.items() <= plan.fingerprint.items()
    assert "2 samples" in plan.note and not pipe.acceleration
    assert torch.equal(call(pipe, "wan"), call(make("wan"), "wan"))
    plan = accel.Plan.load(plan.save(tmp_path / "plan.json"))
    (method,) = plan.methods
    loose = dataclasses.replace(method, threshold=9.0)
    pipe.enable_acceleration(dataclasses.replace(plan, methods=(loose,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(pipe, "wan", steps=6)
    assert pipe.acceleration.report().computed_fraction < 1


def test_another_kind_of_run_is_warned_of_once():
    pipe = make("wan")
    made_for = {"model": "WanPipeline", "steps": 8, "guidance": 3.0}
    method = MagCache((1.0,) * 8, threshold=1.0)
    pipe.enable_acceleration(accel.Plan((method,), fingerprint=made_for))
    with pytest.warns(UserWarning, match="steps 8, this run has 5; guidance 3.0, this run has 4.0"):
        call(pipe, "wan", steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(pipe, "wan", steps=5)


def test_guidance_that_only_the_call_tells_is_in_the_plan_of_a_search():
    pipe = make("flux")
    arguments = {"progress": False, **TINY["flux"].call, "true_cfg_scale": 2.5, "steps": 3}
    plan = accel.calibrate(pipe, PROMPTS[:1], "planned", budget=2, **arguments)
    assert plan.fingerprint["true_cfg_scale"] == 2.5


def test_what_was_enabled_comes_back():
    pipe = make("wan")
    pipe.enable_acceleration(FirstBlockCache(threshold=0.4))
    accel.calibrate(pipe, PROMPTS[:1], "magcache", progress=False, **settings("wan", 3))
    assert "FirstBlockCache" in str(pipe.acceleration.plan)
    assert pipe._progress_bar_config == {"disable": True}


def test_what_cannot_be_calibrated_is_named():
    pipe = make("wan")
    with pytest.raises(ValueError, match=r"FirstBlockCache is not calibrated; .*MagCache"):
        accel.calibrate(pipe, PROMPTS, FirstBlockCache())
    with pytest.raises(ValueError, match="at least one prompt"):
        accel.calibrate(pipe, [], "teacache")
    with pytest.raises(ValueError, match=r"list of texts, got one text: give \['a cat'\]"):
        accel.calibrate(pipe, "a cat", "teacache")
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        accel.calibrate(pipe, PROMPTS, "teacache", samples=0)
    with pytest.raises(ValueError, match="too few for a polynomial of degree 4"):
        accel.calibrate(pipe, PROMPTS[:1], "teacache", progress=False, **settings("wan", 3))
    with pytest.raises(ValueError, match="unknown method 'teacash'; did you mean TeaCache"):
        accel.calibrate(pipe, PROMPTS, "teacash")


@pytest.mark.parametrize(("samples", "expected"), [(None, 8), (2, 2), (100, 100), (130, 130)])
def test_prompts_are_drawn_by_the_seed_in_their_order(samples, expected):
    known = [f"prompt {i}" for i in range(100)]
    found = drawn(known, samples, seed=3)
    assert found == drawn(known, samples, seed=3) and len(found) == expected
    first = found[:100]
    assert [p for p in known if p in first] == first
    assert (found != drawn(known, samples, seed=4)) == (expected < 100)
    assert found[100:] == known[: expected - 100 if expected > 100 else 0]
    assert drawn(known[:3], None, 0) == known[:3]


def test_our_own_prompts_are_many_and_unlike_one_another():
    assert len(GENERIC) == len(set(GENERIC)) >= 32
    words = [{w.strip(",.").lower() for w in text.split() if len(w) > 4} for text in GENERIC]
    for i, one in enumerate(words):
        for other in words[:i]:
            assert len(one & other) <= len(one | other) / 4


def test_samples_are_drawn_and_without_prompts_from_our_own_list():
    pipe, asked = make("wan"), []
    encode = pipe.encode_prompt

    def watched(prompt, *args, **kwargs):
        asked.append(prompt)
        return encode(prompt, *args, **kwargs)

    pipe.encode_prompt = watched
    how = {"progress": False, **settings("wan", 2)}
    for prompts, known in ((None, GENERIC), ([f"prompt {i}" for i in range(9)],) * 2):
        asked.clear()
        plan = accel.calibrate(pipe, prompts, "magcache", samples=2, seed=5, **how)
        assert asked == drawn(known, 2, 5) and plan.note == "calibrated on 2 samples"


def test_a_plan_is_made_for_a_budget_or_a_speed_up():
    pipe, prompts = make("sd"), [*PROMPTS, "a green triangle", "a pink circle"]
    arguments = {"progress": False, **TINY["sd"].call}
    plan = accel.calibrate(pipe, prompts, steps=8, budget=4, **arguments)
    (method,) = plan.methods
    assert len(method.nodes) == len(method.weights) == 4 and method.steps == 8
    assert plan.fingerprint["steps"] == 8 and not pipe.acceleration
    assert plan.fingerprint["guidance_rescale"] == 0.0
    same = accel.calibrate(pipe, prompts, steps=8, speedup=2, **arguments)
    assert same == plan
    pipe.enable_acceleration(plan)
    call(pipe, "sd", steps=8)
    assert pipe.acceleration.report().computed_fraction == pytest.approx(0.5)
    tried = accel.calibrate(pipe, prompts, steps=8, budget=4, effort="high", **arguments)
    assert len(tried.methods[0].nodes) == 4


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "needs either budget .* or speedup"),
        ({"budget": 4, "speedup": 2.0}, "needs either budget .* or speedup"),
        ({"speedup": 1.0}, "speedup must be above 1, got 1"),
        ({"budget": 4, "effort": "hard"}, "effort must be one of normal, high, gradient, got"),
        ({"method": "teacache", "budget": 4}, "TeaCache takes no budget"),
    ],
)
def test_a_budget_that_is_missing_or_out_of_place_is_told(how, said):
    with pytest.raises(ValueError, match=said):
        accel.calibrate(make("wan"), PROMPTS, **how)
