"""Regions of a video whose first frame is a given picture, which the pipeline does not step."""

import diffusers
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

from accel.samplers import RegionAdaptive
from accel.samplers.regions import hold as hold_of
from tests.samplers.region_runs import HALF, PROMPTS, Indices
from tests.tiny_pipelines import make, text

SIZE, FRAMES = 32, 9
PICTURE = torch.linspace(0, 1, 3 * SIZE * SIZE).view(1, 3, SIZE, SIZE)


def ltx_i2v():
    return diffusers.LTXImageToVideoPipeline.from_pipe(make("ltx"))


def hunyuan_video_i2v():
    parts = make("hunyuan_video_i2v").components
    pipe = diffusers.HunyuanVideoImageToVideoPipeline(
        **{name: parts[name] for name in ("transformer", "vae", "scheduler")},
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        image_processor=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def words(count, seed):
    """As its two text encoders would give."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn(count, 6, text.WIDTH, generator=draw),
        "pooled_prompt_embeds": torch.randn(count, text.WIDTH, generator=draw),
        "prompt_attention_mask": torch.ones(count, 6),
    }


def run(pipe, seeds=(0, 1), steps=5):
    """The latents (N, C, F, H, W) of one video for every seed; a prompt belongs to a seed."""
    common = {"image": PICTURE.expand(len(seeds), -1, -1, -1), "output_type": "latent"}
    common |= {"height": SIZE, "width": SIZE, "num_frames": FRAMES, "num_inference_steps": steps}
    common["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    if isinstance(pipe, diffusers.LTXImageToVideoPipeline):
        prompts = [PROMPTS[seed] for seed in seeds]
        latents = pipe(prompt=prompts, max_sequence_length=16, **common).frames
        return latents.unflatten(1, (3, 8, 8)).movedim(4, 1)
    told = words(2, 0), words(2, 1)
    asked, avoided = ({k: v[list(seeds)] for k, v in one.items()} for one in told)
    negative = {f"negative_{name}": value for name, value in avoided.items()}
    return pipe(**asked, **negative, true_cfg_scale=3.0, **common).frames


every = pytest.mark.parametrize("build", [ltx_i2v, hunyuan_video_i2v])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


@every
def test_a_step_that_chooses_every_token_is_a_dense_one(build, monkeypatch):
    monkeypatch.setattr(hold_of, "Selection", Indices)
    monkeypatch.setattr(Indices, "order", staticmethod(lambda n: torch.arange(n).flip(0)))
    pipe = build()
    plain = run(pipe)
    pipe.enable_acceleration(HALF)
    close(run(pipe), plain)
    assert len(pipe.acceleration.report().regions.active) == 3


@every
@pytest.mark.parametrize("method", [HALF, RegionAdaptive.by_error(0.5, start=0.4, end=1)])
def test_the_given_frame_is_always_computed_and_of_the_others_the_share_asked_for(
    build, method, tmp_path
):
    pipe = build()
    plain = run(pipe)
    pipe.enable_acceleration(method)
    pair, regions = run(pipe), pipe.acceleration.report().regions
    frames, rows, columns = regions.grid
    assert frames == 3 and regions.active
    for chosen in regions.active.values():
        assert chosen.shape == (2, rows * columns * 2) and len(chosen.unique(dim=0)) == 2
        assert chosen[:, : rows * columns].tolist() == [list(range(rows * columns))] * 2
    assert not torch.allclose(pair, plain, rtol=1e-3)
    assert torch.equal(pair[:, :, 0], plain[:, :, 0])
    for i in range(2):
        torch.testing.assert_close(
            pair[i : i + 1], run(pipe, (i,)), rtol=1e-3, atol=1e-3 * plain.std().item()
        )
    pipe.acceleration.report().plot_regions(tmp_path / "regions.png")
    assert (tmp_path / "regions.png").stat().st_size > 0
    pipe.disable_acceleration()
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("frame", [0, 4])
def test_conditions_that_are_stepped_with_the_video_are_tokens_like_others(frame, monkeypatch):
    pipe = diffusers.LTXConditionPipeline.from_pipe(make("ltx", "flow_euler"))
    condition = LTXVideoCondition(
        image=VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(PICTURE))[0],
        frame_index=frame,
    )

    def run():
        return pipe(
            conditions=[condition],
            prompt=PROMPTS[0],
            height=SIZE,
            width=SIZE,
            num_frames=FRAMES,
            num_inference_steps=5,
            max_sequence_length=16,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames

    plain = run()
    pipe.enable_acceleration(HALF)
    assert not torch.allclose(run(), plain, rtol=1e-3)
    assert len(pipe.acceleration.report().regions.active) == 3
    monkeypatch.setattr(hold_of, "Selection", Indices)
    close(run(), plain)
