"""RegionUpsampling: white noise of one level again, tokens in their places, models told of them."""

import math

import pytest
import torch

from accel.samplers import RegionUpsampling, Sampler
from accel.samplers.regions.canvas import Canvas
from accel.samplers.regions.edges import decoded, edges, gradient
from accel.samplers.regions.halves import given
from accel.samplers.regions.layouts import patch_of
from accel.samplers.regions.upsampling import Upsampling, cut, doubled
from tests.samplers.stage_runs import noise, stepped
from tests.tiny_pipelines import call, make

CANVASES = {
    "packed": Canvas((1, 32, 32), (2, 2), packed=True),
    "a picture": Canvas((1, 32, 32), (1, 1), packed=False, flat=True),
    "a video": Canvas((3, 16, 32), (2, 2), packed=False),
}


def machine_on(canvas, settings, first):
    """A machine at work without a pipeline."""
    machine = object.__new__(Upsampling)
    machine.settings, machine.canvas, machine.first = settings, canvas, first
    machine.size = canvas.size(0.5)
    return machine


def latents_on(canvas, size, channels, seed):
    count = canvas.grid[0] * math.prod(size)
    return canvas.laid(noise(4, count, channels * math.prod(canvas.patch), seed=seed), size)


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
def test_upsampled_regions_have_independent_noise_of_one_level_again(canvas):
    """x = e x0 + (1 - e) eps of a constant x0 becomes s x0 + (1 - s) eps', with eps' white."""
    settings = RegionUpsampling(edges="latents", upsampled=0.5)
    machine = machine_on(canvas, settings, latents_on(canvas, canvas.grid[1:], 32, 0))
    sizes = [machine.size]
    for stage in (1, 2):
        end = settings.ends[stage - 1]
        s = settings.restart(end)
        begun = end * 2.0 + (1 - end) * latents_on(canvas, sizes[-1], 32, stage)
        new = machine.switch(begun, latents_on(canvas, machine.size, 32, 9), stage, 1 - s)
        left = (new - 2.0 * s) / (1 - s)
        assert left.std().item() == pytest.approx(1, abs=0.01)
        sizes.append(machine.mixed)
        if stage == 1:
            low = math.prod(canvas.grid) // 4
            assert len(machine.chosen) == low // 2
            assert new.numel() == canvas.grid[0] * math.prod(machine.mixed) * new.shape[0] * 32 * (
                math.prod(canvas.patch)
            )
    frames = canvas.open(left, canvas.grid[1:])
    for axis in (3, 4):
        near = frames.narrow(axis, 1, frames.shape[axis] - 1) * frames.narrow(
            axis, 0, frames.shape[axis] - 1
        )
        assert abs(near.mean()) < 0.02
    blocks = frames.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).movedim((4, 6), (-2, -1))
    corners = blocks.flatten(-2).flatten(0, -2)
    covariance = corners.T @ corners / len(corners)
    torch.testing.assert_close(covariance, torch.eye(4), atol=0.03, rtol=0)


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
def test_upsampled_tokens_come_to_lie_where_their_picture_was(canvas):
    settings = RegionUpsampling(edges="latents", upsampled=0.4)
    machine = machine_on(canvas, settings, latents_on(canvas, canvas.grid[1:], 2, 0)[:1] * 0)
    count = canvas.grid[0] * math.prod(machine.size)
    tokens = torch.arange(float(count * 2 * math.prod(canvas.patch))).view(1, count, -1)
    low = canvas.laid(tokens, machine.size)
    mixed = machine.switch(low, low, 1, 0.5)
    whole = machine.switch(mixed, low, 2, 0.5)
    scale = math.prod(settings.strength * (1 - e) + e for e in settings.ends[:2])
    frames = canvas.open(low, machine.size)
    expected = frames.repeat_interleave(2, 3).repeat_interleave(2, 4)
    torch.testing.assert_close(canvas.open(whole, canvas.grid[1:]) * scale, expected)
    assert cut(doubled(tokens, canvas.patch), canvas.patch).shape[1] == 4 * count


def test_edges_are_where_the_picture_changes():
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1
    columns = gradient(picture)[0, 0].sum(0)
    assert columns[3] == columns[4] > 0 and columns[[0, 1, 2, 5, 6, 7]].abs().max() == 0


def test_edges_of_a_video_belong_to_its_latent_frames():
    """Of 9 frames, the first is the first latent frame's, 4 each are the others'."""
    video = torch.zeros(1, 3, 9, 8, 8)
    video[:, :, 5:, :, 4:] = 1
    score = edges(video, (3, 2, 4))
    assert score.shape == (3, 2, 4) and score[:2].abs().max() == 0
    assert (score[2, :, 1:3] > 0).all() and score[2, :, [0, 3]].abs().max() == 0
    video[:, :, 1] = video[:, :, 5]
    torch.testing.assert_close(edges(video, (3, 2, 4))[1] * 4, score[2])


@pytest.mark.parametrize("name", ["wan", "sd3", "flux", "hunyuan_video"])
def test_latents_are_decoded_as_the_pipeline_does(name):
    pipe = make(name)
    latents, seen, vae = call(pipe, name, guidance=1.0), [], pipe.vae
    decode = vae.decode

    def noted(z, *args, **kwargs):
        seen.append(z)
        return decode(z, *args, **kwargs)

    vae.decode = noted
    call(pipe, name, guidance=1.0, output_type="pt")
    shape = seen[0].shape
    frames = latents
    if name == "flux":
        frames = pipe._unpack_latents(latents, 32, 32, pipe.vae_scale_factor)
    assert frames.shape == shape
    still = frames.ndim == 4
    decoded(vae, frames[:, :, None] if still else frames, still)
    torch.testing.assert_close(seen[1], seen[0])


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "sd3"])
def test_whole_places_are_told_as_the_model_counts_them(name):
    model = make(name).transformer
    part = model.pos_embed if name == "sd3" else model.rope
    frames = 1 if name == "sd3" else 3
    latents = noise(1, model.config.in_channels, frames, 4, 8)
    latents = latents[:, :, 0] if name == "sd3" else latents
    own, patch = part(latents), patch_of(model)[1]
    size = 4 // patch, 8 // patch
    places = torch.cartesian_prod(*(torch.arange(float(n)) for n in (frames, *size)))
    told = given(name, part, latents, places, size)
    torch.testing.assert_close(told, own, rtol=1e-5, atol=1e-5)


def test_a_half_of_a_step_turns_by_half():
    """Twice the turn from 1 to 1.5 is the turn from 1 to 2: angles are linear in the place."""
    for name in ("wan", "hunyuan_video"):
        part = make(name).transformer.rope
        places = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.5, 2.5], [0.0, 2.0, 3.0]])
        rows = given(name, part, torch.zeros(1), places, ())
        cos, sin = (each.reshape(3, -1).double() for each in rows)
        turns = torch.complex(cos, sin)
        torch.testing.assert_close(turns[1] ** 2, turns[0] * turns[2], rtol=1e-5, atol=1e-5)


def test_between_two_entries_of_a_table_lies_their_mean():
    part = make("sd3").transformer.pos_embed
    latents = torch.zeros(1, part.proj.in_channels, 2, 6)
    places = torch.tensor([[0, 1.0, 1.0], [0, 1.0, 2.0], [0, 1.0, 1.5]])
    left, right, half = given("sd3", part, latents, places, (2, 4))[0]
    assert not torch.equal(left, right)
    torch.testing.assert_close(half, (left + right) / 2, rtol=1e-5, atol=1e-5)


def test_stages_follow_the_released_times():
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


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_unipc", "flow_dpm++"])
def test_a_video_goes_through_its_stages_with_any_solver(scheduler):
    """Half of the rows and columns, then half of these tokens fourfold, then all."""
    pipe = make("wan", scheduler)
    seen, told = stepped(pipe), []
    pipe.enable_acceleration(RegionUpsampling(upsampled=0.5))
    pipe.transformer.register_forward_pre_hook(
        lambda m, a, k: told.append(tuple(k["hidden_states"].shape[-3:])), with_kwargs=True
    )
    latents = call(pipe, "wan", steps=9, guidance=1.0, height=64, width=64)
    frames, rows, columns = latents.shape[2:]
    low, mixed = (rows // 2, columns // 2), (rows // 2, columns // 2 + 3 * columns // 4)
    shapes = [low] * 2 + [mixed] * 4 + [(rows, columns)] * 3
    assert told[1:] == [(frames, *shape) for shape in shapes[1:]]
    assert [s[4][-3:] for s in seen] == [(frames, *shape) for shape in shapes]
    assert [s[2] for s in seen][2] == [s[2] for s in seen][6] == 0  # begins afresh
    assert latents.isfinite().all()
    report = pipe.acceleration.report()
    masks = [report.regions.mask(step) for step in range(9)]
    assert [m.sum().item() / m.numel() for m in masks] == [0] * 2 + [0.5] * 4 + [1] * 3
    assert 0.5 < report.computed_fraction < 0.8


@pytest.mark.parametrize("name", ["wan", "sd3", "hunyuan_video"])
def test_a_batch_shares_its_regions_and_nothing_else(name):
    """Twice the same sample is the sample."""
    pipe = make(name, "flow_euler")
    size = {"height": 64, "width": 64}
    pipe.enable_acceleration(RegionUpsampling(edges="latents"))
    alone = call(pipe, name, steps=6, prompt="a red circle", seed=0, **size)
    pair = call(pipe, name, steps=6, prompt=("a red circle",) * 2, seed=(0, 0), **size)
    for each in pair.split(1):
        torch.testing.assert_close(each, alone, rtol=1e-3, atol=1e-3)


def test_regions_are_drawn(tmp_path):
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


def test_what_cannot_be_upsampled_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="described for flux, wan, hunyuan_video, sd3"):
        make("ltx").enable_acceleration(RegionUpsampling())
    with pytest.raises(ValueError, match="which Restart lays out before it"):
        make("wan").enable_acceleration(Sampler("Restart"), RegionUpsampling())
    pipe = make("flux")
    pipe.enable_acceleration(RegionUpsampling())
    with pytest.raises(ValueError, match="leave one out; use more steps"):
        call(pipe, "flux", steps=2)
    with pytest.raises(ValueError, match="must be even"):
        call(pipe, "flux", steps=6, width=36)
    pipe = make("wan")
    pipe.vae = None
    with pytest.raises(ValueError, match='has no vae; set edges="latents"'):
        pipe.enable_acceleration(RegionUpsampling())
    with pytest.raises(ValueError, match=r"RegionUpsampling\.strength must be at least 2"):
        RegionUpsampling(strength=1.5)
