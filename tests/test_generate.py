"""Plain and accelerated runs of one request, on real pipelines with tiny random weights."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline
from PIL import Image

from accel import Plan, parse_method
from accel.generate import LoopTimer, generate
from accel.inputs import BadInput, Request, arguments, check_frames, spatial_multiple
from accel.load import Model, load
from accel.outcome import Outcome
from accel.pipelines.tiny import scenes
from accel.run_errors import RunFailed
from tests.tiny_pipelines import PROMPT, TINY, make

SKIPS = {
    "wan": "TaylorSeer:interval=2,warmup=1",
    "sd": "DeepCache:interval=2",
    "flux": "TaylorSeer:interval=2,warmup=1",
    "ltx": "TaylorSeer:interval=2,warmup=1",
    "cogvideox": "TaylorSeer:interval=2,warmup=1",
}


def opened(name: str, shipped: bool = False) -> Model:
    return Model(name, make(name), TINY[name].call, shipped)


@pytest.mark.parametrize("name", sorted(SKIPS))
def test_compare(name):
    model = opened(name)
    request = Request(PROMPT, steps=5, seed=3)
    outcome = generate(model, request, parse_method(SKIPS[name]), compare=True)
    assert outcome.plain is not None and outcome.psnr is not None and outcome.ssim is not None
    assert 0 < outcome.report.computed_fraction < 1
    assert outcome.plain.frames.shape == outcome.accelerated.frames.shape
    assert not np.array_equal(outcome.plain.frames, outcome.accelerated.frames)
    assert 10 < outcome.psnr < 100 and 0 < outcome.ssim < 1
    for sample in (outcome.plain, outcome.accelerated):
        assert sample.video == (name not in ("sd", "flux"))
        assert sample.seconds_loop is not None and 0 < sample.seconds_loop <= sample.seconds
    assert outcome.plain.adherence is None  # the checker judges shipped models only
    assert not model.pipe.acceleration
    assert outcome.speedup == outcome.plain.seconds / outcome.accelerated.seconds


def test_plain_is_what_the_pipeline_alone_makes():
    model = opened("wan")
    call = {
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "output_type": "np",
        **TINY["wan"].call,
    }
    alone = make("wan")(PROMPT, generator=torch.Generator().manual_seed(7), **call)[0][0]
    request = Request(PROMPT, steps=4, guidance=3.0, seed=7)
    plan = Plan((parse_method("TaylorSeer:interval=1"),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a setting that skips nothing says so
        outcome = generate(model, request, plan, compare=True)
    assert outcome.plain is not None
    assert np.array_equal(outcome.plain.frames, alone)
    assert np.array_equal(outcome.accelerated.frames, alone)
    assert (outcome.psnr, outcome.report.computed_fraction) == (100, 1)
    assert outcome.ssim == pytest.approx(1)


def test_without_compare_there_is_one_run():
    model = opened("sd")
    seen = []
    step = model.pipe.scheduler.step
    model.pipe.scheduler.step = lambda *a, **k: (seen.append(1), step(*a, **k))[1]
    outcome = generate(model, Request(PROMPT, steps=6), "balanced")
    assert len(seen) == 6
    assert (outcome.plain, outcome.psnr, outcome.ssim, outcome.speedup) == (None,) * 4
    assert outcome.label == "balanced"


def test_comparison_warms_up_first():
    model = opened("sd")
    seen = []
    step = model.pipe.scheduler.step
    model.pipe.scheduler.step = lambda *a, **k: (seen.append(1), step(*a, **k))[1]
    generate(model, Request(PROMPT, steps=6), "balanced", compare=True)
    assert len(seen) == 2 + 6 + 6


def test_from_a_picture(tmp_path):
    Image.new("RGB", (50, 41), "red").save(tmp_path / "red.png")
    request = Request(PROMPT, steps=6, image=tmp_path / "red.png")
    outcome = generate(opened_img2img(tmp_path), request, "balanced", compare=True)
    assert outcome.accelerated.frames.shape == (1, 40, 48, 3)
    assert len(outcome.report.rows) == int(6 * 0.8)
    other = Request(PROMPT, steps=6, image=tmp_path / "red.png", height=32, width=64)
    assert arguments(outcome.model.pipe, {}, other)["image"].size == (64, 32)


class Follows:
    """A pipeline that edits: it takes a size, and makes the picture's unasked."""

    default_sample_size = 4

    def __call__(self, prompt=None, image=None, height=None, width=None): ...


@pytest.mark.parametrize(
    "pipe, asked, size",
    [
        ("sd3", {}, (32, 32)),
        ("sd3", {"width": 64}, (64, 32)),
        ("wan_i2v", {"height": 64, "width": 64}, (64, 64)),
        ("svd", {"height": 64, "width": 64}, (64, 64)),
        (Follows(), {}, (200, 100)),
    ],
)
def test_a_picture_is_cropped_to_what_is_made_and_not_squashed(pipe, asked, size, tmp_path):
    wide = Image.new("RGB", (200, 100), "red")
    wide.paste("green", (44, 0, 156, 100))
    wide.save(tmp_path / "wide.png")
    if isinstance(pipe, str):
        pipe = make(pipe)
    if type(pipe).__name__ == "StableDiffusion3Pipeline":
        pipe = StableDiffusion3Img2ImgPipeline.from_pipe(pipe)
    picture = arguments(pipe, {}, Request("a", image=tmp_path / "wide.png", **asked))["image"]
    assert picture.size == size
    if size[0] == size[1]:
        assert np.asarray(picture)[..., 0].max() < 10  # the red sides are cut off


def opened_img2img(tmp_path) -> Model:
    """A text-to-image folder, opened to start from a picture."""
    make("sd").save_pretrained(tmp_path / "sd")
    return load(str(tmp_path / "sd"), device="cpu", image=True)


def test_steps_that_leave_none_from_a_picture(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="at least 4"):
        arguments(make("sdxl_img2img"), {}, Request("a", steps=2, image=tmp_path / "a.png"))


@pytest.mark.parametrize("name, moving", [("wan", True), ("sd", False)])
def test_shipped_models_are_judged(name, moving):
    """The decoder draws a true scene, which its caption fits and another does not."""
    scene = scenes.sample_scene(np.random.default_rng(0), moving=moving)
    drawn = torch.from_numpy(scenes.render(scene, 17 if moving else 1)) * 2 - 1
    model = opened(name, shipped=True)
    decoded = drawn.movedim(0, 1)[None] if moving else drawn
    model.pipe.vae.decode = lambda *args, **kwargs: (decoded,)
    outcome = generate(model, Request(scenes.caption(scene), steps=4), "balanced", compare=True)
    assert outcome.plain is not None
    assert outcome.plain.adherence == outcome.accelerated.adherence == 1
    colour = scene.objects[0].what.colour
    wrong = scenes.caption(scene).replace(colour, "pink" if colour != "pink" else "red")
    judged = generate(model, Request(wrong, steps=4), "balanced").accelerated.adherence
    assert judged is not None and 0 < judged < 1
    free = generate(model, Request("a cat", steps=4), "balanced")
    assert free.accelerated.adherence is None


def test_a_refused_method_changes_nothing():
    model = opened("wan")
    with pytest.raises(BadInput, match="DeepCache works on unet"):
        generate(model, Request(PROMPT, steps=4), parse_method("DeepCache"))
    with pytest.raises(BadInput, match="no recipe 'fats'; did you mean fast"):
        generate(model, Request(PROMPT, steps=4), "fats")
    assert not model.pipe.acceleration
    assert "progress_bar" not in vars(model.pipe)


def test_a_model_without_recipes_says_what_to_give():
    with pytest.raises(BadInput, match="has no recipes; give methods"):
        generate(opened("ltx2"), Request(PROMPT, steps=2), "balanced")


def test_values_that_are_not_numbers():
    model = opened("sd")
    next(model.pipe.vae.decoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(RunFailed, match="not numbers"):
        generate(model, Request(PROMPT, steps=3), "balanced")


def test_out_of_memory_says_what_helps():
    model = opened("sd")

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")

    model.pipe.unet.forward = fail
    with pytest.raises(RunFailed, match=r"80 GiB.*--height"):
        generate(model, Request(PROMPT, steps=3), "balanced")


def test_what_the_pipeline_itself_refuses():
    model = Model("sd", make("sd"), {})
    with pytest.raises(BadInput, match="divisible by 8"):
        generate(model, Request(PROMPT, steps=3, height=36, width=32), "balanced")


@pytest.mark.parametrize(
    "place, code, refuses",
    [
        ("accel.caching.mine", "raise ValueError('another number of steps')", True),
        ("accel.caching.mine", "max([])", False),
        ("accel.pipelines.tiny.text", "raise ValueError('a bug')", False),
        ("diffusers.models.mine", "raise ValueError('a bug')", False),
    ],
)
def test_a_method_that_refuses_is_told_from_what_goes_wrong(place, code, refuses):
    model = opened("wan")
    within: dict = {"__name__": place}
    exec(f"def forward(*args, **kwargs): {code}", within)
    model.pipe.transformer.forward = within["forward"]
    with pytest.raises(ValueError) as caught:
        generate(model, Request(PROMPT, steps=4), parse_method(SKIPS["wan"]))
    assert isinstance(caught.value, BadInput) == refuses


def test_an_interrupt_restores_the_pipeline():
    model = opened("wan")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    model.pipe.vae.decode = interrupt
    with pytest.raises(KeyboardInterrupt):
        generate(model, Request(PROMPT, steps=3), "balanced", compare=True)
    assert "progress_bar" not in vars(model.pipe)
    assert not model.pipe.acceleration


def test_loop_timer_leaves_no_trace():
    pipe = make("sd")
    before = set(vars(pipe))
    with LoopTimer().watching(pipe) as timer:
        pipe(PROMPT, num_inference_steps=2, output_type="latent", **TINY["sd"].call)
    assert timer.seconds is not None and timer.seconds > 0
    assert set(vars(pipe)) - before <= {"_guidance_scale", "_num_timesteps"} | {
        n for n in vars(pipe) if n.startswith("_")
    }
    assert "progress_bar" not in vars(pipe)


@pytest.mark.parametrize("name, patch", [("wan", 2), ("cogvideox", 2), ("ltx", 1), ("sd", 1)])
def test_sizes_are_multiples_of_what_a_patch_decodes_to(name, patch):
    pipe = make(name)
    volume = () if name == "sd" else (1,)
    latents = torch.zeros(1, pipe.vae.config.latent_channels if name != "wan" else 4, *volume, 4, 4)
    timestep = {"temb": torch.zeros(1)} if name == "ltx" else {}
    pixels = pipe.vae.decode(latents, **timestep)[0].shape[-1]
    assert spatial_multiple(pipe) == pixels // 4 * patch


def test_flux_packs_two_by_two():
    pipe = make("flux")
    assert spatial_multiple(pipe) == 2 * pipe.vae_scale_factor


@pytest.mark.parametrize(
    "name, frames, near", [("wan", 8, "5 or 9"), ("wan", 2, "1 or 5"), ("ltx", 16, "13 or 17")]
)
def test_frames_are_one_more_than_a_multiple(name, frames, near):
    with pytest.raises(BadInput, match=f"try {near}$"):
        check_frames(make(name), frames)


def test_more_positions_than_the_model_has():
    pipe = make("wan")  # 32 positions of 16 pixels
    arguments(pipe, {}, Request("a", height=512))
    with pytest.raises(BadInput, match="at most 512"):
        arguments(pipe, {}, Request("a", height=528))
    with pytest.raises(BadInput, match="at most 125"):
        arguments(pipe, {}, Request("a", frames=129))


def test_outcome_of_a_recipe_and_of_methods():
    model = opened("wan")
    recipe = generate(model, Request(PROMPT, steps=5), "balanced").to_dict({})
    assert (recipe["model"], recipe["recipe"]) == ("wan", "balanced")
    method = parse_method("TaylorSeer:interval=3,warmup=1")
    other = generate(model, Request(PROMPT, steps=5), method)
    assert isinstance(other, Outcome) and other.label == "TaylorSeer"
    values = other.to_dict({})
    assert values["recipe"] is None
    assert values["methods"][0]["method"] == "TaylorSeer"
    assert values["methods"][0]["interval"] == 3


def test_rate_follows_the_model():
    model = opened("wan")
    outcome = generate(model, Request(PROMPT, steps=4), "balanced")
    assert outcome.rate() == 16
