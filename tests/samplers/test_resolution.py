"""Stages of resolution: what is renoised has the right variance, and solvers begin afresh."""

import math

import pytest
import torch
from diffusers import FluxPipeline

from accel.samplers import ResolutionStages, Sampler
from accel.samplers.regions.canvas import Canvas, fresh
from accel.samplers.resolution_stages import Switching
from tests.samplers.stage_runs import noise, stepped
from tests.tiny_pipelines import call, make

SWITCH = ResolutionStages(scales=(0.5, 1.0), until=(0.4,), shift=1.5)


def test_packed_latents_lie_where_the_pipeline_says():
    latents = noise(2, 4, 6, 10)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 10)
    canvas = Canvas((1, 3, 5), (2, 2), packed=True)
    assert torch.equal(canvas.open(packed, (3, 5))[:, :, 0], latents)
    assert torch.equal(canvas.close(canvas.open(packed, (3, 5))), packed)
    video = noise(1, 2 * 3 * 5, 8)
    canvas = Canvas((2, 3, 5), (1, 1), packed=True)
    assert torch.equal(canvas.close(canvas.open(video, (3, 5))), video)
    assert canvas.open(video, (3, 5))[0, :, 1, 2, 4].tolist() == video[0, 29].tolist()


@pytest.mark.parametrize("scale", [0.75, 0.5, 0.3])
def test_some_of_a_noise_is_independent_noise(scale):
    canvas = Canvas((2, 16, 24), (2, 2), packed=False)
    latents = noise(1, 4, 2, 32, 48)
    size = canvas.size(scale)
    picked = canvas.picked(latents, size)
    assert picked.shape == (1, 4, 2, 2 * size[0], 2 * size[1])
    assert len(picked.unique()) == picked.numel()
    assert set(picked.flatten().tolist()) <= set(latents.flatten().tolist())


def test_constant_latents_survive_another_resolution():
    canvas = Canvas((2, 8, 12), (2, 2), packed=False)
    constant = torch.full((1, 3, 2, 8, 12), 0.7)
    resized = canvas.resized(constant, (4, 6), (8, 12))
    assert resized.shape == (1, 3, 2, 16, 24)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.7))


def test_fresh_noise_is_each_samples_own_and_like_no_other():
    first = noise(2, 8, 64, 64)
    draws = [fresh(first, first.shape, number) for number in range(2)]
    assert torch.equal(fresh(first[1:], first[1:].shape, 0), draws[0][1:])
    for draw in draws:
        assert draw.std().item() == pytest.approx(first.std().item(), abs=1e-5)
        assert abs((draw * first).mean()) < 0.02
    assert abs((draws[0] * draws[1]).mean()) < 0.02


def switching(settings, canvas, first):
    """A machine at work without a pipeline."""
    machine = object.__new__(Switching)
    machine.settings, machine.canvas, machine.first = settings, canvas, first
    machine.size = canvas.size(0.5)
    return machine


@pytest.mark.parametrize("level", [0.9, 0.6, 0.2])
def test_renoised_latents_have_the_variance_of_their_level(level):
    """var = (1 - g)^2 var(x0) + g^2."""
    canvas = Canvas((1, 64, 64), (2, 2), packed=False, flat=True)
    machine = switching(SWITCH, canvas, noise(1, 16, 128, 128))
    wave = torch.linspace(0, 9, 64).sin()
    clean = (wave[:, None] + wave).expand(1, 16, 64, 64) * 0.8
    new = machine.switch(clean, clean, 1, level)
    resized = canvas.resized(clean, (32, 32), (64, 64))
    assert new.shape == (1, 16, 128, 128) and machine.size == (64, 64)
    expected = (1 - level) ** 2 * resized.var() + level**2
    assert new.var().item() == pytest.approx(expected.item(), rel=0.03)
    left = new - (1 - level) * resized
    assert abs((left[..., 1:] * left[..., :-1]).mean()) < 0.01


def test_a_video_renoised_at_a_lower_resolution_has_the_variance_of_its_level():
    canvas = Canvas((3, 64, 64), (2, 2), packed=False)
    machine = switching(ResolutionStages((1.0, 0.5, 1.0), (0.2, 0.7)), canvas, None)
    machine.first, machine.size = noise(1, 16, 3, 128, 128), (64, 64)
    wave = torch.linspace(0, 9, 128).sin()
    clean = (wave[:, None] + wave).expand(1, 16, 3, 128, 128) * 0.8
    for stage, (size, level) in enumerate(((64, 0.7), (128, 0.4)), start=1):
        resized = canvas.resized(clean, machine.size, (size // 2, size // 2))
        new = machine.switch(clean, clean, stage, level)
        assert new.shape == (1, 16, 3, size, size) and machine.size == (size // 2, size // 2)
        expected = (1 - level) ** 2 * resized.var() + level**2
        assert new.var().item() == pytest.approx(expected.item(), rel=0.03)
        left = new - (1 - level) * resized
        for axis in (2, 3, 4):
            near = left.narrow(axis, 1, left.shape[axis] - 1) * left.narrow(
                axis, 0, left.shape[axis] - 1
            )
            assert abs(near.mean()) < 0.01
        clean = resized


@pytest.mark.parametrize("scheduler", ["flow_unipc", "flow_dpm++"])
def test_a_multistep_solver_begins_afresh_on_shifted_levels(scheduler):
    plain, pipe = make("wan", scheduler), make("wan", scheduler)
    before, seen = stepped(plain), stepped(pipe)
    call(plain, "wan", guidance=1.0)
    told = []
    pipe.enable_acceleration(SWITCH)
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: told.append(int(k["timestep"][0])), with_kwargs=True
    )
    latents = call(pipe, "wan", guidance=1.0)
    assert [s[4][-2:] for s in seen] == [(4, 4)] * 2 + [(8, 8)] * 3 and latents.shape[-1] == 8
    assert [s[2] for s in seen] == [0, 1, 0, 1, 2] and [s[2] for s in before] == [0, 1, 2, 2, 2]
    assert not seen[2][3]
    for index in range(5):
        factor = 1.0 if index < 2 else 1.5
        level = before[index][0]
        expected = factor * level / (1 + (factor - 1) * level)
        assert seen[index][0] == pytest.approx(expected, abs=1e-5)
        assert told[index] == pytest.approx(1000 * expected, abs=1.01)
    assert seen[1][1] == pytest.approx(before[1][1], abs=1e-5) and seen[4][1] == before[4][1]


@pytest.mark.parametrize(
    ("name", "level_of"),
    [
        ("lumina2", lambda t: 1 - t),
        ("qwenimage", lambda t: t),
        ("hunyuan_video", lambda t: t / 1000),
    ],
)
def test_the_model_is_told_the_level_of_each_stage_in_its_own_units(name, level_of):
    pipe, told = make(name), []
    seen = stepped(pipe)
    pipe.enable_acceleration(SWITCH)
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: told.append(float(level_of(k["timestep"].flatten()[0]))), with_kwargs=True
    )
    call(pipe, name, guidance=1.0)
    assert len(told) == len(seen) == 5
    assert told == pytest.approx([s[0] for s in seen], abs=2e-3)
    small, large = math.prod(seen[0][4]), math.prod(seen[4][4])
    assert [math.prod(s[4]) for s in seen] == [small] * 2 + [large] * 3 and large == 4 * small


def test_a_batch_is_upsampled_in_stages_as_its_samples_alone():
    prompts = ("a red circle", "a blue square")
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(SWITCH)
    pair = call(pipe, "wan", prompt=prompts, seed=(0, 1))
    for i in range(2):
        alone = call(pipe, "wan", prompt=prompts[i], seed=i)
        torch.testing.assert_close(pair[i : i + 1], alone, rtol=1e-3, atol=1e-4)


def test_after_an_abort_the_next_run_is_as_ever():
    pipe = make("flux")
    pipe.enable_acceleration(SWITCH)
    expected = call(pipe, "flux")

    def stop(pipe, i, t, kwargs):
        if i == 1:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        call(pipe, "flux", callback=stop)
    assert torch.equal(call(pipe, "flux"), expected)
    call(pipe, "flux", width=64)
    assert torch.equal(call(pipe, "flux"), expected)


def test_what_cannot_be_done_is_refused_with_the_reason():
    for name, method, reason in (
        ("wan_i2v", SWITCH, "put beside the latents: transformer takes 12 channels"),
        ("cogvideox", SWITCH, "changing resolution is described for wan"),
    ):
        with pytest.raises(ValueError, match=reason):
            make(name).enable_acceleration(method)
    for solver in ("PseudoCorrector", "Restart"):
        with pytest.raises(ValueError, match=f"which {solver} lays out before it"):
            make("wan").enable_acceleration(Sampler(solver), SWITCH)
    for settings in ({"scales": (0.5,)}, {"until": (0.5, 0.6)}, {"scales": (0.5, 0.75)}):
        with pytest.raises(ValueError, match=r"ResolutionStages\.(scales|until) must be"):
            ResolutionStages(**settings)
