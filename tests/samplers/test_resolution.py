"""Stages of resolution: what is renoised has the right variance, and solvers begin afresh."""

import math

import pytest
import torch
from diffusers import FluxPipeline

from accel.samplers import RegionUpsampling, ResolutionStages, Sampler
from accel.samplers.regions.canvas import Canvas, fresh
from accel.samplers.resolution_regions import Upsampling, expanded, gradient
from accel.samplers.resolution_stages import Switching
from tests.tiny_pipelines import call, make

SWITCH = ResolutionStages(scales=(0.5, 1.0), until=(0.4,), shift=1.5)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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
    machine = object.__new__(Switching if isinstance(settings, ResolutionStages) else Upsampling)
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


def test_upsampled_regions_have_independent_noise_of_one_level_again():
    """x = e x0 + (1 - e) eps of a constant x0 becomes s x0 + (1 - s) eps', with eps' white."""
    settings = RegionUpsampling(edges="latents", upsampled=0.5)
    canvas = Canvas((1, 64, 64), (2, 2), packed=True)
    machine = switching(settings, canvas, noise(4, 64 * 64, 64))
    for stage in (1, 2):
        end = settings.ends[stage - 1]
        s = settings.restart(end)
        if stage == 1:
            tokens = end * 2.0 + (1 - end) * noise(4, 32 * 32, 64, seed=1)
            clean = noise(4, 32 * 32, 64, seed=2)
        else:
            tokens = end * 2.0 + (1 - end) * noise(4, len(machine.rest) + 2048, 64, seed=3)
        new = machine.switch(tokens, clean, stage, 1 - s)
        left = (new - 2.0 * s) / (1 - s)
        pixels = left.unflatten(2, (-1, 4)).flatten(0, 2)
        covariance = pixels.T @ pixels / len(pixels)
        torch.testing.assert_close(covariance, torch.eye(4), atol=0.02, rtol=0)
        if stage == 1:
            assert len(machine.chosen) == 512 and new.shape[1] == 512 + 4 * 512
    frames = canvas.open(left, (64, 64))[:, :, 0]
    for axis in (2, 3):
        near = frames.narrow(axis, 1, 127) * frames.narrow(axis, 0, 127)
        assert abs(near.mean()) < 0.02


def test_upsampled_tokens_come_to_lie_where_their_picture_was():
    settings = RegionUpsampling(edges="latents", upsampled=0.4)
    canvas = Canvas((1, 4, 6), (2, 2), packed=True)
    machine = switching(settings, canvas, torch.zeros(1, 24, 8))
    low = torch.arange(4.0 * 6).view(1, 1, 1, 4, 6).expand(1, 2, 1, 4, 6)
    packed = canvas.close(low)
    mixed = machine.switch(packed, packed, 1, 0.5)
    whole = machine.switch(mixed, packed, 2, 0.5)
    z = settings.strength
    scale = math.prod(z * (1 - e) + e for e in settings.ends[:2])
    expected = low[0, 0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(canvas.open(whole, (4, 6))[0, 0, 0] * scale, expected)
    assert expanded(packed).shape == (1, 24, 8)


def test_edges_are_where_the_picture_changes():
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1
    columns = gradient(picture)[0, 0].sum(0)
    assert columns[3] == columns[4] > 0 and columns[[0, 1, 2, 5, 6, 7]].abs().max() == 0


def stepped(pipe):
    """What the scheduler knew before each step: (level, level after, history kept, shape)."""
    seen, kind = [], type(pipe.scheduler)

    class Seen(kind):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            index = 0 if self.step_index is None else self.step_index
            kept = [m for m in getattr(self, "model_outputs", []) if m is not None]
            levels = [float(s) for s in self.sigmas[index : index + 2]]
            last = getattr(self, "last_sample", None) is not None
            seen.append((*levels, len(kept), last, tuple(sample.shape)))
            return super().step(model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler = Seen.from_config(pipe.scheduler.config)
    return seen


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


def test_stages_of_region_upsampling_follow_the_released_times():
    pipe = make("flux")
    seen = stepped(pipe)
    pipe.enable_acceleration(RegionUpsampling())
    call(pipe, "flux", steps=18, guidance=1.0)
    assert [s[4][1] for s in seen] == [16] * 5 + [11 + 4 * 5] * 6 + [64] * 7
    begins = [0.0, *(e / (6.317 * (1 - e) + e) for e in (0.3, 0.45))]
    for first, count, begin, end in zip((0, 5, 11), (5, 6, 7), begins, (0.3, 0.45, 1), strict=True):
        assert seen[first][0] == pytest.approx(1 - begin, abs=1e-5)
        assert seen[first + count - 1][1] == pytest.approx(1 - end, abs=1e-5)
    assert all(after < before for before, after, *_ in seen)
    assert pipe.acceleration.report().computed_fraction < 0.8


def test_regions_of_region_upsampling_are_drawn(tmp_path):
    pipe = make("flux")
    pipe.enable_acceleration(RegionUpsampling())
    call(pipe, "flux", steps=18, guidance=1.0)
    report = pipe.acceleration.report()
    masks = [report.regions.mask(step)[0] for step in range(18)]
    assert [int(mask.sum()) for mask in masks] == [0] * 5 + [4 * 5] * 6 + [64] * 7
    blocks = masks[5].view(4, 2, 4, 2).transpose(1, 2).flatten(2)
    assert torch.equal(blocks.any(2), blocks.all(2)) and int(blocks.all(2).sum()) == 5
    assert report.regions.share == pytest.approx((6 * 20 / 64 + 7) / 18)
    assert "49.3% of the image at full resolution over 18 steps (7 of them" in report.summary()
    assert report.to_dict()["regions"]["partial_time"] is None
    assert report.plot_regions(tmp_path / "regions.png").stat().st_size > 1000


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
        ("wan", RegionUpsampling(), "positions token by token"),
    ):
        with pytest.raises(ValueError, match=reason):
            make(name).enable_acceleration(method)
    for solver in ("PseudoCorrector", "Restart"):
        with pytest.raises(ValueError, match=f"which {solver} lays out before it"):
            make("wan").enable_acceleration(Sampler(solver), SWITCH)
    pipe = make("flux")
    pipe.enable_acceleration(RegionUpsampling())
    with pytest.raises(ValueError, match="leave one out; use more steps"):
        call(pipe, "flux", steps=2)
    with pytest.raises(ValueError, match="must be even"):
        call(pipe, "flux", steps=6, width=36)
    for settings in ({"scales": (0.5,)}, {"until": (0.5, 0.6)}, {"scales": (0.5, 0.75)}):
        with pytest.raises(ValueError, match=r"ResolutionStages\.(scales|until) must be"):
            ResolutionStages(**settings)
    with pytest.raises(ValueError, match=r"RegionUpsampling\.strength must be at least 2"):
        RegionUpsampling(strength=1.5)
