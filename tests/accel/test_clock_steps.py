"""The clock on real pipelines: index, total, sigma and branch of every denoiser call."""

import pytest
import torch

from tests.probes import Watch, plain, watched
from tests.tiny_pipelines import SCHEDULERS, call, make


def expected_sigmas(name, scheduler, steps):
    """Noise levels by the definition, from a scheduler of the test's own."""
    own = SCHEDULERS[scheduler]()
    own.set_timesteps(steps)
    if scheduler.startswith("flow"):
        return own.sigmas[: len(own.timesteps)].tolist()
    alphas = own.alphas_cumprod[own.timesteps.long()]
    return ((1 - alphas) / alphas).sqrt().tolist()


def close(seen, wanted):
    assert len(seen) == len(wanted)
    assert all(s == pytest.approx(w, rel=1e-4) for s, w in zip(seen, wanted, strict=True)), seen


@pytest.mark.parametrize(
    ("name", "scheduler", "iterations", "branches"),
    [
        ("wan", "flow_unipc", 5, ["cond", "uncond"]),
        ("wan", "flow_euler", 5, ["cond", "uncond"]),
        ("wan", "flow_heun", 9, ["cond", "uncond"]),
        ("wan", "flow_dpm++", 5, ["cond", "uncond"]),
        ("sd", "ddim", 5, ["0"]),
        ("sd", "pndm", 6, ["0"]),
        ("sd", "euler", 5, ["0"]),
        ("sd", "heun", 9, ["0"]),
        ("sd", "unipc", 5, ["0"]),
        ("sd", "dpm++", 5, ["0"]),
        ("sdxl", "euler", 5, ["0"]),
        ("sd_controlnet", "ddim", 5, ["0"]),
        ("cogvideox", "cogvideox_ddim", 5, ["both"]),
        ("cogvideox", "cogvideox_dpm", 5, ["both"]),
        ("ltx", "flow_euler_dynamic", 5, ["both"]),
        ("flux", "flow_euler_dynamic", 5, ["cond", "uncond"]),
        ("flux_distilled", "flow_euler_dynamic", 5, ["cond"]),
    ],
)
def test_every_iteration_is_counted_once(name, scheduler, iterations, branches):
    watch = watched(name, scheduler)
    assert watch.branches == branches
    assert watch.indices == [i for i in range(iterations) for _ in branches]
    assert watch.totals == {iterations}
    assert len({step.run for step in watch.steps}) == 1
    assert all(step.sigma is not None for step in watch.steps)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("wan", "flow_euler"),
        ("wan", "flow_unipc"),
        ("wan", "flow_heun"),
        ("sd", "ddim"),
        ("sd", "pndm"),
        ("sd", "dpm++"),
        ("sd", "lcm"),
    ],
)
def test_sigma_is_the_noise_level_by_definition(name, scheduler):
    close(watched(name, scheduler).sigmas, expected_sigmas(name, scheduler, 5))


def test_sigma_of_heun_repeats_the_inner_evaluation():
    sigmas = watched("sd", "heun").sigmas
    assert sigmas[1::2] == sigmas[2::2] and sigmas[0] > sigmas[1] > sigmas[3]


def test_sigma_is_infinite_where_nothing_of_the_signal_is_left():
    watch, pipe = Watch(), make("sd")
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, prediction_type="v_prediction", **zero
    )
    pipe.enable_acceleration(watch)
    assert call(pipe, "sd").isfinite().all()
    assert watch.sigmas[0] == float("inf")
    assert watch.sigmas[1:] == sorted(watch.sigmas[1:], reverse=True)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize(
    ("name", "off", "on"),
    [
        ("wan", ["cond"], ["cond", "uncond"]),
        ("flux", ["cond"], ["cond", "uncond"]),
        ("sd", ["0"], ["0"]),
        ("ltx", ["both"], ["both"]),
    ],
)
def test_guidance_on_and_off(name, off, on, guidance):
    watch = watched(name, guidance=guidance)
    branches = on if guidance > 1 else off
    assert watch.branches == branches
    assert watch.indices == [i for i in range(5) for _ in branches]


@pytest.mark.parametrize(
    ("name", "scheduler", "steps"),
    [
        ("sd_img2img", "ddim", 3),
        ("sd_img2img", "pndm", 4),
        ("sd_img2img", "heun", 5),
        ("sd_img2img", "euler", 3),
        ("sdxl_img2img", "euler", 3),
        ("sdxl_img2img", "ddim", 3),
        ("sdxl_img2img", "heun", 5),
    ],
)
def test_image_to_image_begins_late(name, scheduler, steps):
    """Strength 0.7 of 5 steps leaves the last 3; their noise levels are those of the whole run."""
    watch = watched(name, scheduler, strength=0.7)
    assert watch.indices == list(range(steps)) and watch.totals == {steps}
    whole = watched(name.removesuffix("_img2img"), scheduler).sigmas
    close(watch.sigmas, whole[-steps:])


@pytest.mark.parametrize(("scheduler", "steps"), [("euler", 3), ("heun", 5), ("ddim", 3)])
def test_denoising_end_cuts_the_end(scheduler, steps):
    watch = watched("sdxl", scheduler, denoising_end=0.6)
    assert watch.indices == list(range(steps)) and watch.totals == {steps}
    close(watch.sigmas, watched("sdxl", scheduler).sigmas[:steps])


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_denoising_start_and_end_cut_both(scheduler):
    how = {"denoising_start": 0.4, "denoising_end": 0.8}
    watch = watched("sdxl_img2img", scheduler, steps=10, **how)
    whole = watched("sdxl", scheduler, steps=10).sigmas
    assert watch.totals == {len(watch.steps)}
    first = whole.index(watch.sigmas[0])
    assert first > 0 and first + len(watch.steps) < 10
    close(watch.sigmas, whole[first : first + len(watch.steps)])


def told(pipe, name, **how):
    """The timesteps a pipeline's U-Net is told, by the test's own hook."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(float(args[1])))
    call(pipe, name, **how)
    hook.remove()
    return seen


@pytest.mark.parametrize(
    "how", [{"denoising_start": 0.4, "denoising_end": 0.8}, {"denoising_start": 0.5}, {}]
)
def test_sigma_belongs_to_the_timestep_the_model_is_told(how):
    watch, pipe = Watch(), make("sdxl_img2img", "ddim")
    pipe.enable_acceleration(watch)
    alphas = pipe.scheduler.alphas_cumprod[torch.tensor(told(pipe, "sdxl_img2img", **how)).long()]
    close(watch.sigmas, ((1 - alphas) / alphas).sqrt().tolist())


def test_two_transformers_share_one_count():
    watch = watched("wan22")
    assert watch.indices == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and watch.totals == {5}
    assert [d for d, _ in watch.seen] == ["transformer"] * 8 + ["transformer_2"] * 2
    assert [s.branch for s in watch.steps] == ["cond", "uncond"] * 5


def test_a_deep_copied_scheduler_is_not_counted():
    """LTX2 steps a copy of its scheduler for the sound."""
    watch = watched("ltx2")
    assert sorted(set(watch.indices)) == [0, 1, 2, 3, 4] and watch.totals == {5}
    assert watch.branches == ["cond_uncond"]


def test_runs_are_numbered_apart_and_each_counts_its_own_steps():
    watch, pipe = Watch(), make("sd")
    pipe.enable_acceleration(watch)
    for steps in (3, 5, 2):
        assert torch.equal(call(pipe, "sd", steps=steps), plain("sd", steps=steps))
    assert watch.indices == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
    assert [s.total for s in watch.steps] == [3] * 3 + [5] * 5 + [2] * 2
    runs = [s.run for s in watch.steps]
    assert len(set(runs)) == 3 and runs == sorted(runs)


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_a_batch_counts_as_one(name):
    assert watched(name, batch=2).indices == watched(name).indices
