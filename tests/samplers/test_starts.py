"""What a run begins from: an anchor, given frames."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from accel.samplers import FrameLevels, Sampler, TruncatedStart
from accel.samplers.frame_levels import per_token
from accel.samplers.truncated_start import Starter
from tests.probes import footprint
from tests.samplers.start_runs import frame, latents_of, samples_of
from tests.tiny_pipelines import call, make


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


@pytest.mark.parametrize(
    ("name", "checks"), [("flux", True), ("flux", False), ("ltx", True), ("wan", True)]
)
def test_a_run_that_fails_before_its_loop_leaves_nothing_to_the_next(name, checks, monkeypatch):
    """In pipelines that make latents before levels (flux, ltx), or levels before latents."""
    if not checks:  # some pipelines check no inputs
        monkeypatch.setattr(
            Starter, "_called", lambda self, call, *args, **rest: call(*args, **rest)
        )
    pipe, anchor = make(name), latents_of(name)
    pipe.enable_acceleration(TruncatedStart(0.6))
    seen = samples_of(pipe)
    expected = call(pipe, name, steps=7, latents=anchor)
    call(pipe, name, steps=20, latents=anchor)
    own = pipe.transformer
    pipe.transformer = make(name).transformer
    with pytest.raises(RuntimeError, match=r"pipe\.transformer was replaced"):
        call(pipe, name, steps=20, latents=3 * anchor)
    pipe.transformer, begun = own, len(seen)
    found = call(pipe, name, steps=7, latents=anchor)
    assert torch.equal(seen[begun], seen[0]) and torch.equal(found, expected)


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
    with pytest.raises(ValueError, match="LTX2Pipeline steps its sound by a scheduler of its own"):
        make("ltx2").enable_acceleration(TruncatedStart())
    pipe, latents = make("wan"), latents_of("wan")
    plain = call(pipe, "wan", latents=latents)
    pipe.enable_acceleration(TruncatedStart(1.0))
    assert torch.equal(call(pipe, "wan", latents=latents), plain)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_given_frames_stay_and_the_others_see_them(name):
    pipe, latents = make(name, "flow_euler"), latents_of(name)
    plain = call(pipe, name, latents=latents)
    before = footprint(pipe)
    pipe.enable_acceleration(FrameLevels((0,)))
    found = call(pipe, name, latents=latents)
    assert torch.equal(call(pipe, name, latents=latents), found)
    assert torch.equal(frame(found, 0), frame(latents, 0))
    assert not torch.allclose(frame(found, 1), frame(latents, 1), atol=1e-2)
    changed = latents.clone()
    frame(changed, 0).add_(1)
    again = call(pipe, name, latents=changed)
    assert not torch.allclose(frame(again, 1), frame(found, 1), atol=1e-3)
    pipe.enable_acceleration(FrameLevels((0, -1)))
    found = call(pipe, name, latents=latents)
    assert torch.equal(frame(found, -1), frame(latents, -1))
    assert torch.equal(found, latents) == (name == "wan")  # of two frames
    pipe.disable_acceleration()
    assert footprint(pipe) == before and torch.equal(call(pipe, name, latents=latents), plain)


def test_a_video_goes_on_from_three_frames():
    pipe = make("wan", "flow_euler")
    latents = torch.randn(call(pipe, "wan", steps=1, num_frames=17).shape)
    assert latents.shape[2] == 5
    pipe.enable_acceleration(FrameLevels((0, 1, 2)))
    found = call(pipe, "wan", latents=latents, num_frames=17)
    assert torch.equal(found[:, :, :3], latents[:, :, :3])
    assert not torch.allclose(found[:, :, 3:], latents[:, :, 3:], atol=1e-2)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_a_vector_of_equal_timesteps_is_the_scalar(name):
    pipe, latents = make(name, "flow_euler"), latents_of(name)
    plain = call(pipe, name, latents=latents)
    told = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True
    )
    pipe.enable_acceleration(FrameLevels(levels=(1.0,) * (2 if name == "wan" else 3)))
    found = call(pipe, name, latents=latents)
    hook.remove()
    assert told[0].ndim == 2 and (told[0] == told[0][0, 0]).all()
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)
    vector = per_token(torch.tensor([700.0, 300.0]), [0.0, 1.0], 16)
    assert vector.shape == (2, 32) and (vector[:, :16] == 0).all()
    assert torch.equal(vector[:, 16], torch.tensor([700.0, 300.0]))


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_a_frame_at_half_the_level_is_told_half_and_moves_half(name):
    pipe, latents = make(name, "flow_euler"), latents_of(name)
    told, steps = [], []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True
    )
    shares = (0.5, 1.0) if name == "wan" else (0.5, 1.0, 0.25)
    pipe.enable_acceleration(FrameLevels(levels=shares))

    def note(go, output, t, sample, **rest):
        result = go(output, t, sample, **rest)
        steps.append((output, sample, result[0], pipe.scheduler.step_index))
        return result

    pipe.acceleration._site.clock.step_handlers.append(note)
    call(pipe, name, latents=latents)
    hook.remove()
    each = told[0][0].unflatten(0, (len(shares), -1))[:, 0]
    torch.testing.assert_close(each, each[1] * torch.tensor(shares), rtol=1e-4, atol=1e-4)
    sigmas = pipe.scheduler.sigmas
    for output, sample, moved, after in steps:
        width = sigmas[after] - sigmas[after - 1]
        for number, share in enumerate(shares):
            expected = frame(sample, number) + share * width * frame(output, number)
            torch.testing.assert_close(frame(moved, number), expected, rtol=1e-4, atol=1e-4)


def test_shares_of_the_level_need_steps_in_proportion_to_it():
    pipe, latents = make("wan", "flow_unipc"), latents_of("wan")
    pipe.enable_acceleration(FrameLevels(levels=(0.5, 1.0)))
    with pytest.raises(ValueError, match="those of UniPCMultistepScheduler are not"):
        call(pipe, "wan", latents=latents)
    pipe.enable_acceleration(Sampler(), FrameLevels(levels=(0.5, 1.0)))
    assert call(pipe, "wan", latents=latents).isfinite().all()
    pipe.enable_acceleration(FrameLevels(levels=(0.5, 1.0, 1.0)))
    with pytest.raises(ValueError, match="has 3 entries, but this video has 2 latent frames"):
        call(pipe, "wan", latents=latents)
    for wrong in (lambda: FrameLevels(levels=(1.5,)), lambda: FrameLevels((1,), levels=(1.0,))):
        with pytest.raises(ValueError, match=r"FrameLevels\.levels must be 0 to 1, and without"):
            wrong()


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
