"""What the denoiser sees changes on the way: guidance dropped, residuals from outside."""

import pytest
import torch

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from tests.tiny_pipelines import call, make


@pytest.mark.parametrize(
    "method", [DeepCache(interval=4, branch=1), TaylorSeer(interval=4, warmup=1)], ids=str
)
def test_a_batch_that_halves_midway_starts_anew(method):
    """Fused guidance dropped after step 2: nothing kept fits, so step 3 is computed."""

    def drop(pipe, i, t, kwargs):
        if i == 2:
            pipe._guidance_scale = 1.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    pipe, seen = make("sd"), ["latents", "prompt_embeds"]
    arguments = {"steps": 9, "callback": drop, "callback_on_step_end_tensor_inputs": seen}
    plain = call(pipe, "sd", **arguments)
    pipe.enable_acceleration(method)
    latents = call(pipe, "sd", **arguments)
    assert latents.shape == plain.shape and latents.isfinite().all()
    rows = pipe.acceleration.report().rows
    assert [r.index for r in rows if r.action == "computed"] == [0, 3, 7]


@pytest.mark.parametrize("method", [TaylorSeer(interval=3, warmup=1), FirstBlockCache(0.4)])
def test_separate_guidance_dropped_midway_leaves_the_other_branch_as_it_was(method):
    def drop(pipe, i, t, kwargs):
        pipe._guidance_scale = 1.0 if i >= 2 else pipe._guidance_scale
        return kwargs

    pipe = make("wan")
    pipe.enable_acceleration(method)
    call(pipe, "wan", steps=8, callback=drop)
    rows = pipe.acceleration.report().rows
    indices = {b: [r.index for r in rows if r.branch == b] for b in ("cond", "uncond")}
    assert indices == {"cond": list(range(8)), "uncond": [0, 1, 2]}
    if isinstance(method, TaylorSeer):
        computed = [r.index for r in rows if r.branch == "cond" and r.action == "computed"]
        assert computed == [0, 3, 6]


def controlled(pipe, change):
    """Give Flux's transformer the residuals a ControlNet would; from call 2 on times `change`."""
    calls = []
    double, single = torch.randn(3, 1, 64, 24), torch.randn(3, 1, 64, 24)

    def add(model, args, kwargs):
        calls.append(0)
        scale = 0.3 * (change if len(calls) > 2 else 1)
        extra = {
            "controlnet_block_samples": list(scale * double),
            "controlnet_single_block_samples": list(scale * single),
        }
        return args, kwargs | extra

    pipe.transformer.register_forward_pre_hook(add, with_kwargs=True)
    return pipe


@pytest.mark.parametrize(
    ("method", "idle"),
    [
        (TaylorSeer(interval=9, carrier="hidden"), TaylorSeer(interval=1, carrier="hidden")),
        (TaylorSeer(interval=9, carrier="module"), TaylorSeer(interval=1, carrier="module")),
        (FirstBlockCache(threshold=1e9), FirstBlockCache(threshold=0)),
    ],
    ids=["hidden", "module", "first_block"],
)
@pytest.mark.filterwarnings("ignore:.*skipped nothing")
def test_residuals_between_blocks_are_not_swallowed(method, idle):
    """ParaAttention #39: a ControlNet is ignored under a cache."""

    def run(setting, change):
        torch.manual_seed(0)
        pipe = controlled(make("flux_distilled"), change)
        if setting is not None:
            pipe.enable_acceleration(setting)
        return call(pipe, "flux_distilled", steps=6)

    plain = run(None, 1)
    assert torch.equal(run(idle, 1), plain)
    steady = run(method, 1)
    assert not torch.equal(steady, plain)
    assert (run(method, -1) - steady).abs().max() > 1e-2
