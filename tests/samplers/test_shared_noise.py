"""Shared noise: what frames have in common, and which pipelines begin from noise alone."""

import pytest
import torch
from diffusers import (
    CogVideoXVideoToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    StableVideoDiffusionPipeline,
    WanImageToVideoPipeline,
    WanPipeline,
    WanVideoToVideoPipeline,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from accel.samplers import SharedNoise
from accel.samplers.shared_noise import content_of, shared
from tests.probes import footprint
from tests.samplers.start_runs import frame, latents_of, samples_of
from tests.tiny_pipelines import call, make


@pytest.mark.parametrize(
    ("preserve", "deviation", "between", "first"),
    [(True, 1.0, 0.2, 0.2**0.5), (False, 0.68**0.5, 0.04 / 0.68, 0.2 / 0.68**0.5)],
)
def test_shared_noise_has_the_variance_and_correlation_it_says(preserve, deviation, between, first):
    noise = torch.randn(4, 3, 200, 20, generator=torch.Generator().manual_seed(0))
    mixed = shared(noise, 1, 0.2, preserve)
    assert torch.equal(mixed[:, 0], noise[:, 0])
    frames = mixed.permute(1, 0, 2, 3).flatten(1)
    correlation = torch.corrcoef(frames)
    assert frames[1:].std() == pytest.approx(deviation, abs=0.02)
    assert float(correlation[1, 2]) == pytest.approx(between, abs=0.03)
    assert float(correlation[0, 1]) == pytest.approx(first, abs=0.03)


@pytest.mark.parametrize("name", ["wan", "wan_i2v", "cogvideox", "ltx", "animatediff"])
def test_shared_noise_in_pipelines(name):
    pipe = make(name)
    plain = call(pipe, name, steps=2)
    before = footprint(pipe)
    pipe.enable_acceleration(SharedNoise(share=1.0))
    begun = samples_of(pipe)
    call(pipe, name, steps=2)
    start = begun[0]
    if start.ndim == 3:
        start = start.unflatten(1, (call_frames(pipe), -1)).transpose(1, 2)[None].squeeze(0)
        assert torch.equal(start[:, :, 0], start[:, :, 1])
    else:
        axis = 1 if name == "cogvideox" else 2
        assert torch.equal(start.select(axis, 0), start.select(axis, 1))
    pipe.disable_acceleration()
    assert footprint(pipe) == before and torch.equal(call(pipe, name, steps=2), plain)


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("wan", WanVideoToVideoPipeline, "video, timestep"),
        ("cogvideox", CogVideoXVideoToVideoPipeline, "video, timestep"),
        ("ltx", LTXImageToVideoPipeline, "image"),
    ],
)
def test_noise_is_not_shared_where_latents_hold_a_picture(name, kind, content):
    parts = {key: value for key, value in make(name).components.items() if value is not None}
    parts.pop("transformer_2", None)
    pipe = kind(**parts)
    before = footprint(pipe)
    with pytest.raises(ValueError, match=f"^{kind.__name__} makes its first latents of {content} "):
        pipe.enable_acceleration(SharedNoise())
    assert footprint(pipe) == before
    pipe.enable_acceleration(SharedNoise(share=0))


def test_what_the_first_latents_are_made_of():
    class Other(WanImageToVideoPipeline):
        pass

    for kind in (WanPipeline, WanImageToVideoPipeline, Other, StableVideoDiffusionPipeline):
        assert content_of(kind) == ()
    found = content_of(HunyuanVideoImageToVideoPipeline)  # a thousandth of the picture
    assert found == ("image", "image_condition_type")


def test_noise_is_shared_where_a_picture_could_have_been_given():
    pipe = LTXConditionPipeline(**make("ltx", "flow_euler").components)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_acceleration(SharedNoise(share=1.0))
    begun = samples_of(pipe)
    call(pipe, "ltx", steps=1)
    assert torch.equal(frame(begun[0], 0), frame(begun[0], 1))
    given = LTXVideoCondition(image=torch.rand(3, 32, 32), frame_index=0)
    with pytest.raises(ValueError, match="makes its first latents of conditions as well as of"):
        call(pipe, "ltx", steps=1, conditions=[given])


def call_frames(pipe):
    return (9 - 1) // pipe.vae_temporal_compression_ratio + 1


def test_latents_that_are_passed_are_left_alone():
    pipe, latents = make("wan"), latents_of("wan")
    plain = call(pipe, "wan", latents=latents)
    pipe.enable_acceleration(SharedNoise())
    assert torch.equal(call(pipe, "wan", latents=latents), plain)
    pipe = make("sd3")
    pipe.enable_acceleration(SharedNoise())
    with pytest.raises(ValueError, match="SharedNoise is for video"):
        call(pipe, "sd3")
