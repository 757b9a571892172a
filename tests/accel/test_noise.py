"""Noise levels of schedulers whose sigmas rise: 1 is noise and 0 data, whoever reads them.

diffusers' own comment on `invert_sigmas` is that only Mochi needs it.
"""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from accel import calibrate
from accel.noise import noise_levels
from accel.samplers import IntervalGuidance, Sampler, TruncatedStart
from accel.samplers.guidance_steps import step_lengths
from accel.samplers.level_fit import LevelRecording
from tests.probes import watched
from tests.tiny_pipelines import TINY, call, make


def inverted():
    pipe = make("mochi")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipe.scheduler.config, invert_sigmas=True
    )
    return pipe


def levels_of(scheduler, steps=8):
    scheduler.set_timesteps(steps)
    return noise_levels(None, scheduler)[1]


def rows_of(pipe, *methods, **options):
    pipe.enable_acceleration(*methods)
    call(pipe, "mochi", steps=8, **options)
    return pipe.acceleration.report().rows


def test_levels_fall_whichever_way_the_scheduler_counts():
    plain, other = make("mochi").scheduler, inverted().scheduler
    assert levels_of(other) == pytest.approx(levels_of(plain), abs=1e-6)
    lengths = step_lengths(levels_of(other), other)
    assert lengths == pytest.approx(step_lengths(levels_of(plain), plain), abs=1e-4)
    pipe = inverted()
    pipe.enable_acceleration(Sampler())
    assert levels_of(pipe.scheduler) == pytest.approx(levels_of(plain), abs=1e-6)


def test_a_scheduler_that_only_keeps_the_setting_is_read_as_it_counts():
    config = inverted().scheduler.config
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    kept = UniPCMultistepScheduler.from_config(config, **flow)
    assert kept.config["invert_sigmas"] and levels_of(kept) == kept.sigmas[:8].tolist()


def test_guidance_in_an_interval_acts_at_the_same_levels():
    plain = rows_of(make("mochi"), IntervalGuidance())
    found = rows_of(inverted(), IntervalGuidance())
    assert 0 < sum(row.work == 1 for row in plain) < 8
    assert [row.work for row in found] == [row.work for row in plain]
    assert [r.sigma for r in found] == pytest.approx([r.sigma for r in plain], abs=1e-6)


def test_fitted_levels_fall_from_noise():
    pipe, recording = inverted(), LevelRecording(steps=3)
    pipe.enable_acceleration(recording)
    call(pipe, "mochi", steps=8)
    assert recording.levels == pytest.approx((1 - pipe.scheduler.sigmas[:8]).tolist())
    (method,) = calibrate(
        inverted(), ["a", "b"], Sampler(steps=3), steps=8, progress=False, **TINY["mochi"].call
    ).methods
    assert method.levels[0] == 1 and list(method.levels) == sorted(method.levels, reverse=True)


@pytest.mark.parametrize("before", [(), (Sampler(),)], ids=["own", "Sampler"])
def test_a_start_from_an_anchor_holds_its_share_of_noise(before):
    pipe, seen = inverted(), []
    shape = call(make("mochi"), "mochi", steps=2).shape
    anchor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"][:1]), with_kwargs=True
    )
    rows = rows_of(pipe, *before, TruncatedStart(0.9, seed=3), latents=anchor)
    hook.remove()
    expected = [level for level in watched("mochi", steps=8).sigmas if level <= 0.9]
    assert 1 < len(expected) < 8
    assert [row.sigma for row in rows] == pytest.approx(expected, abs=1e-6)
    g = rows[0].sigma
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(seen[0], (1 - g) * anchor + g * noise)
