"""TeaCache: skip lists by hand, the published loop, and where its coefficients come from."""

import numpy as np
import pytest
import torch

from accel.caching import TeaCache
from accel.caching.teacache import polynomial
from accel.caching.teacache_published import PUBLISHED, published
from tests.caching.stack import Stack, agrees, change, hold
from tests.tiny_pipelines import call, make

IDENTITY = (1.0, 0.0)


def scripted(pipe, cond, uncond):
    """Make the time embedding of a Wan pipeline's blocks cond[i] and uncond[i] at step i."""
    calls = []

    def replace(module, args, output):
        value = (cond, uncond)[len(calls) % 2][len(calls) // 2]
        calls.append(value)
        return (output[0], torch.full_like(output[1], value), *output[2:])

    pipe.transformer.condition_embedder.register_forward_hook(replace)


def computed_steps(pipe, branch):
    rows = pipe.acceleration.report().rows
    return [r.index for r in rows if r.branch == branch and r.action == "computed"]


def test_skip_list_by_hand():
    """Changes to the step before, skipped or not, add up to 0.25; branches apart; ends computed."""
    #         first  10 %   20 %   30 %   0      10 %   10 %   10 %   last
    changes = [None, 0.10, 0.20, 0.30, 0.00, 0.10, 0.10, 0.10, 0.00]
    # the sum:       0.10  0.30!  0.30!  0.00  0.10  0.20  0.30!   -
    values = [1.0]
    for relative in changes[1:]:
        values.append(values[-1] * (1 + relative))
    pipe = make("wan", scheduler="flow_euler")
    scripted(pipe, values, [1.0] * 9)
    method = TeaCache(threshold=0.25, coefficients=IDENTITY, indicator="embedding")
    pipe.enable_acceleration(method)
    call(pipe, "wan", steps=9)
    assert computed_steps(pipe, "cond") == [0, 2, 3, 7, 8]
    assert computed_steps(pipe, "uncond") == [0, 8]


@pytest.mark.parametrize(("warmup", "tail", "expected"), [(1, 0, [0]), (3, 2, [0, 1, 2, 4, 5])])
def test_without_a_limit_only_the_ends_are_computed(warmup, tail, expected):
    pipe = make("wan", scheduler="flow_euler")
    pipe.enable_acceleration(TeaCache(float("inf"), IDENTITY, warmup=warmup, tail=tail))
    call(pipe, "wan", steps=6)
    assert computed_steps(pipe, "cond") == computed_steps(pipe, "uncond") == expected


@pytest.mark.parametrize("name", ["wan", "flux", "ltx"])
def test_latents_and_skips_are_those_of_the_published_loop(name):
    steps, coefficients, threshold = 8, (-3.0, 2.0, 0.01), {"wan": 0.2, "flux": 0.15, "ltx": 0.2}
    stack = Stack(name)
    first = stack.blocks[0]
    stack.watch("modulated", first.attn if name == "flux" else first.attn1)
    total, before = {}, {}

    def computes():
        branch, now = stack.branch, stack.seen["modulated"]
        old, before[branch] = before.get(branch), now
        if stack.step not in (0, steps - 1):
            total[branch] += np.poly1d(coefficients)(change(now, old))
            if total[branch] < threshold[name]:
                return False
        total[branch] = 0.0
        return True

    stack.overwrite(computes, hold)
    expected = stack.go(steps=steps)
    method = TeaCache(threshold[name], coefficients, "modulated")
    agrees(method, stack, stack.computed, expected, steps=steps)


def test_polynomial_has_its_highest_power_first_and_is_never_negative():
    for x in (0.0, 0.05, 0.3):
        flux = PUBLISHED["flux"].coefficients
        assert polynomial(flux)(x) == pytest.approx(np.poly1d(flux)(x))
    assert np.poly1d(PUBLISHED["wan-1.3b"].coefficients)(0.0) < 0
    assert polynomial(PUBLISHED["wan-1.3b"].coefficients)(0.0) == 0


def test_published_coefficients_are_found_by_the_checkpoints_config():
    tiny = make("flux").transformer
    assert published(tiny) is None
    tiny.register_to_config(num_layers=19, num_single_layers=38)
    assert published(tiny) is PUBLISHED["flux"]
    wan = make("wan").transformer
    wan.register_to_config(num_attention_heads=12, in_channels=16)
    assert published(wan) is PUBLISHED["wan-1.3b"]


def test_a_model_without_published_coefficients_asks_for_calibration():
    pipe = make("flux")
    with pytest.raises(ValueError, match="accel calibrate --for teacache"):
        pipe.enable_acceleration(TeaCache())
    pipe.enable_acceleration(TeaCache(coefficients="flux"))
    with pytest.raises(ValueError, match=r"coefficients must be numbers, or one of flux"):
        TeaCache(coefficients="flux2")


def test_a_block_of_unknown_modulation_is_judged_by_its_embedding():
    pipe = make("cogvideox")
    pipe.enable_acceleration(TeaCache(0.5, IDENTITY, "modulated"))
    with pytest.raises(ValueError, match="CogVideoXBlock modulates its input is not known"):
        call(pipe, "cogvideox")
    pipe.enable_acceleration(TeaCache(float("inf"), IDENTITY))
    call(pipe, "cogvideox")
    assert [r.action for r in pipe.acceleration.report().rows].count("computed") == 2
