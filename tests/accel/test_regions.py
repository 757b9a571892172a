"""Pictures of regions: which tokens of which step are shown as computed, over what."""

import json

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from accel.region_picture import GAP, LABEL, SIDE, latent_frame
from accel.regions import Regions
from accel.samplers import RegionAdaptive, ResolutionStages
from tests.tiny_pipelines import call, make

RED = (220, 30, 30)


def regions(grid=(1, 2, 4), steps=3):
    """Step 1 computes the first token of sample 0 and the last of sample 1."""
    tokens = grid[0] * grid[1] * grid[2]
    return Regions(grid, steps, {1: torch.tensor([[0], [tokens - 1]])}, torch.rand(2, tokens, 4))


def test_masks_and_the_share_of_tokens():
    found = regions()
    assert found.mask(0).all() and found.mask(1).nonzero().tolist() == [[0, 0, 0]]
    assert found.mask(1, sample=1).nonzero().tolist() == [[0, 1, 3]]
    assert found.share == pytest.approx((2 + 1 / 8) / 3)
    assert "70.8% of the image's tokens" in found.summary(0.8) and "80.0%" in found.summary(0.8)
    assert found.partial([1.0, 4.0]) == (1 / 8, 0.25)
    assert found.partial([1.0]) is found.partial([]) is None
    assert (
        "took 25.0% of a dense one's time for 12.5% of its tokens: 75.0% saved of 87.5% in theory, "
        "0.86 realised"
    ) in found.summary(0.8, [1.0, 4.0])
    for wrong in ({"index": 3}, {"index": 1, "sample": 2}):
        with pytest.raises(ValueError, match="is not one of this run's"):
            found.mask(**wrong)


def read(path):
    return [frame for frame in imageio.get_reader(path)]


def report_of(found):
    pipe = make("sd3")
    pipe.enable_acceleration(RegionAdaptive(ratio=0.5, start=0.2, dense=()))
    call(pipe, "sd3", steps=2)
    report = pipe.acceleration.report()
    object.__setattr__(report, "regions", found)
    return report


def test_a_sheet_shows_each_step_and_veils_what_was_held(tmp_path):
    picture = np.full((32, 64, 3), RED, np.uint8)
    path = report_of(regions()).plot_regions(tmp_path / "regions.png", picture)
    sheet = np.asarray(Image.open(path))
    tall = SIDE // 2
    assert sheet.shape == (tall + LABEL, 3 * (SIDE + GAP) - GAP, 3)
    bodies = [sheet[LABEL:, i * (SIDE + GAP) : i * (SIDE + GAP) + SIDE] for i in range(3)]
    assert (bodies[0] == RED).all() and (bodies[2] == RED).all()
    computed = (bodies[1] == RED).all(-1)
    assert computed[: tall // 2, : SIDE // 4].all()
    assert computed.sum() == tall // 2 * SIDE // 4


def test_moving_pictures_show_steps_in_turn_or_the_video_itself(tmp_path):
    report = report_of(regions((2, 2, 4)))
    path = report.plot_regions(tmp_path / "video.mp4", np.full((5, 32, 64, 3), RED, np.uint8))
    frames = np.stack(read(path))
    assert len(frames) == 5
    body = frames[:, LABEL : LABEL + SIDE // 2, :SIDE].astype(int)
    red = (abs(body - RED) < 40).all(-1)
    assert red[0].mean() == pytest.approx(1 / 8, abs=0.03) and red[3].mean() < 0.01
    object.__setattr__(report, "regions", regions())
    path = report.plot_regions(tmp_path / "steps.mp4", sample=1)
    assert len(read(path)) == 3


def test_frames_belong_to_frames_of_tokens():
    assert [latent_frame(f, 17, 5) for f in range(17)] == [
        0,
        *[1] * 4,
        *[2] * 4,
        *[3] * 4,
        *[4] * 4,
    ]
    assert [latent_frame(f, 8, 4) for f in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [latent_frame(f, 5, 1) for f in range(5)] == [0] * 5


def test_what_cannot_be_drawn_is_said(tmp_path):
    report = report_of(regions())
    with pytest.raises(ValueError, match=r"\.png or \.mp4, not 'regions\.gif'"):
        report.plot_regions(tmp_path / "regions.gif")
    with pytest.raises(ValueError, match="take one sample of a batch"):
        report.plot_regions(tmp_path / "regions.png", np.zeros((2, 3, 4, 4, 3)))
    object.__setattr__(report, "regions", None)
    with pytest.raises(ValueError, match="runs with RegionAdaptive"):
        report.plot_regions(tmp_path / "regions.png")


def test_a_run_draws_over_its_own_latents_and_reports_as_json(tmp_path):
    pipe = make("sd3")
    pipe.enable_acceleration(RegionAdaptive(ratio=0.5, start=0.2))
    call(pipe, "sd3", width=64, steps=4)
    report = pipe.acceleration.report()
    path = report.plot_regions(tmp_path / "regions.png")
    assert Image.open(path).size == (4 * (SIDE + GAP) - GAP, SIDE // 2 + LABEL)
    assert "dense" in report.summary() and "realised" in report.summary()
    seconds = report.step_seconds
    assert len(seconds) == 3 and all(s > 0 for s in seconds)
    assert sum(seconds) < report.seconds_loop
    told = json.loads(report.save(tmp_path / "report.json").read_text())["regions"]
    assert told["share"] == report.regions.share and told["grid"] == [1, 8, 16]
    assert told["tokens"] == {"1": 64} and told["partial_tokens"] == 0.5
    assert told["partial_time"] == pytest.approx(seconds[0] / ((seconds[1] + seconds[2]) / 2))
    pipe.enable_acceleration(ResolutionStages((0.5, 1.0)))
    call(pipe, "sd3", steps=2)
    assert pipe.acceleration.report().to_dict()["regions"] is None
