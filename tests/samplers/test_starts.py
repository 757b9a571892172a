"""What a run begins from: shared noise, an anchor, given frames."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from accel.samplers import FrameLevels, Sampler, SharedNoise, TruncatedStart
from accel.samplers.frame_levels import per_token
from accel.samplers.shared_noise import shared
from tests.probes import footprint
from tests.tiny_pipelines import call, make


def latents_of(name, seed=0):
    """Latents of the shape that the pipeline makes."""
    made = call(make(name), name, steps=2)
    return torch.randn(made.shape, generator=torch.Generator().manual_seed(seed))


def samples_of(pipe):
    """A list that grows by the state before every step."""
    seen = []

    def note(go, output, t, sample, **rest):
        seen.append(sample)
        return go(output, t, sample, **rest)

    pipe.acceleration._site.clock.step_handlers.append(note)
    return seen


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


@pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx", "animatediff"])
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


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("wan", None), ("flux", None), ("sd", "ddim"), ("sd", "euler"), ("cogvideox", None)],
)
def test_a_start_from_an_anchor(name, scheduler):
    """A run from level 0.6 ends nearer to its anchor than one from 0.9, and skips steps."""
    pipe, anchor = make(name, scheduler), latents_of(name)
    kept = anchor.clone()
    plain = call(pipe, name, latents=anchor)
    before, own = footprint(pipe), pipe.scheduler
    distances, steps = [], []
    for start in (0.9, 0.6):
        pipe.enable_acceleration(TruncatedStart(start))
        found = call(pipe, name, latents=anchor)
        rows = pipe.acceleration.report().rows
        flow = name in ("wan", "flux")
        assert max(r.sigma if flow else r.sigma / (1 + r.sigma) for r in rows) <= start
        steps.append(len({r.index for r in rows}))
        distances.append(float((found - anchor).norm()))
    assert torch.equal(call(pipe, name, latents=anchor), found) and torch.equal(anchor, kept)
    assert steps[1] < min(steps[0], 5)
    assert distances[1] < distances[0]
    pipe.disable_acceleration()
    assert pipe.scheduler is own and footprint(pipe) == before
    assert torch.equal(call(pipe, name, latents=anchor), plain)


def test_an_anchored_run_is_image_to_image():
    """The first state is the anchor at the level, in the scheduler's own words."""
    pipe, anchor = make("wan", "flow_euler"), latents_of("wan")
    pipe.enable_acceleration(TruncatedStart(0.5, seed=3))
    seen = samples_of(pipe)
    call(pipe, "wan", steps=8, latents=anchor)
    g = pipe.acceleration.report().rows[0].sigma
    noise = torch.randn(anchor.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(seen[0], (1 - g) * anchor + g * noise)


def test_a_start_beside_a_sampler_and_in_a_batch():
    pipe, anchor = make("wan", "flow_euler"), latents_of("wan")
    pipe.enable_acceleration(Sampler(), TruncatedStart(0.6))
    found = call(pipe, "wan", steps=6, latents=anchor)
    pair = call(pipe, "wan", steps=6, latents=anchor.repeat(2, 1, 1, 1, 1), batch=2)
    torch.testing.assert_close(pair[:1], found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(pair[1:], found, atol=1e-2)
    pipe.enable_acceleration(TruncatedStart(0.6), Sampler())
    with pytest.raises(RuntimeError, match="list TruncatedStart after Sampler"):
        call(pipe, "wan", steps=6, latents=anchor)


def test_starts_that_cannot_be_are_refused():
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(TruncatedStart(0.6))
    with pytest.raises(ValueError, match="pass them, as latents"):
        call(pipe, "wan")
    pipe.enable_acceleration(TruncatedStart(0.001))
    with pytest.raises(ValueError, match="give more steps or a higher start"):
        call(pipe, "wan", latents=latents_of("wan"))
    with pytest.raises(ValueError, match=r"TruncatedStart.start must be"):
        TruncatedStart(0.0)
    with pytest.raises(ValueError, match="evaluates twice a step"):
        make("wan", "flow_heun").enable_acceleration(TruncatedStart())
    pipe, latents = make("wan"), latents_of("wan")
    plain = call(pipe, "wan", latents=latents)
    pipe.enable_acceleration(TruncatedStart(1.0))
    assert torch.equal(call(pipe, "wan", latents=latents), plain)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_given_frames_stay_and_the_others_see_them(name):
    pipe, latents = make(name, "flow_euler"), latents_of(name)
    plain = call(pipe, name, latents=latents)
    before = footprint(pipe)
    pipe.enable_acceleration(FrameLevels((0, -1)))
    found = call(pipe, name, latents=latents)
    assert torch.equal(call(pipe, name, latents=latents), found)
    if name == "wan":
        assert torch.equal(found[:, :, 0], latents[:, :, 0])
        assert torch.equal(found[:, :, -1], latents[:, :, -1])
    changed = latents.clone()
    changed[:, :, 0] += 1  # of packed latents every token is changed in its first channel
    assert not torch.allclose(call(pipe, name, latents=changed), found, atol=1e-3)
    pipe.disable_acceleration()
    assert footprint(pipe) == before and torch.equal(call(pipe, name, latents=latents), plain)


def test_a_vector_of_equal_timesteps_is_the_scalar():
    module = make("wan").transformer
    latents, text = torch.randn(2, 4, 2, 8, 8), torch.randn(2, 16, module.config.text_dim)
    timestep = torch.tensor([700.0, 300.0])
    vector = per_token(timestep, [], 2, 16)
    assert vector.shape == (2, 32) and torch.equal(vector[:, 5], timestep)
    plain = module(latents, timestep, text).sample
    torch.testing.assert_close(module(latents, vector, text).sample, plain, rtol=1e-4, atol=1e-5)
    held = per_token(timestep, [0], 2, 16)
    assert (held[:, :16] == 0).all() and torch.equal(held[:, 16:], vector[:, 16:])


def test_per_token_timesteps_of_flow_euler_turn_the_sign():
    """Why the step is taken as ever here, and given frames put back: diffusers' own per-token step
    runs away from the data unless it is handed the negative of what the model says."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    sample, output = torch.randn(1, 6, 3), torch.randn(1, 6, 3)
    t, each = scheduler.timesteps[0], scheduler.timesteps[0].repeat(1, 6)
    plain = copy.deepcopy(scheduler).step(output, t, sample).prev_sample
    trap = copy.deepcopy(scheduler).step(output, t, sample, per_token_timesteps=each).prev_sample
    right = copy.deepcopy(scheduler).step(-output, t, sample, per_token_timesteps=each).prev_sample
    torch.testing.assert_close(right, plain)
    torch.testing.assert_close(trap - sample, sample - plain)


def test_frames_that_are_not_there_are_refused():
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(FrameLevels((7,)))
    with pytest.raises(ValueError, match="no latent frame 7: this video has 2"):
        call(pipe, "wan")
    with pytest.raises(ValueError, match="works on"):
        make("sd").enable_acceleration(FrameLevels())
    with pytest.raises(ValueError, match="each once"):
        FrameLevels((0, 0))
