"""Sampler in real pipelines: what it changes, what it gives back, and what it works beside."""

import copy
import math

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchHeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
)
from diffusers.schedulers import AysSchedules

import accel
from accel.caching import EasyCache, Planned, TaylorSeer
from accel.plan import Plan
from accel.samplers import SOLVERS, AdamsBashforth, Sampler
from accel.samplers.grids import EPSS, levels
from tests.probes import footprint, watched
from tests.tiny_pipelines import SCHEDULERS, TINY, call, make

FAMILIES = ("wan", "flux", "sd3", "ltx", "mochi", "sd_img2img", "cogvideox", "svd")


@pytest.mark.parametrize("name", FAMILIES)
def test_in_a_real_pipeline(name):
    pipe = make(name)
    plain = call(pipe, name)
    own, before = pipe.scheduler, footprint(pipe)
    pipe.enable_acceleration(Sampler())
    assert isinstance(pipe.scheduler, AdamsBashforth)
    first = call(pipe, name)
    assert first.isfinite().all() and first.shape == plain.shape and not torch.equal(first, plain)
    assert torch.equal(call(pipe, name), first)
    rows = pipe.acceleration.report().rows
    assert {row.action for row in rows} == {"computed"}
    assert "computes every step, by AdamsBashforth" in pipe.acceleration.explain(steps=5)
    pipe.disable_acceleration()
    assert pipe.scheduler is own and footprint(pipe) == before
    assert torch.equal(call(pipe, name), plain)


@pytest.mark.parametrize(
    ("name", "solver"), [*(("wan", each) for each in SOLVERS), ("sd_img2img", "PseudoCorrector")]
)
def test_the_clock_sees_every_evaluation_of_every_solver(name, solver):
    pipe = make(name)
    pipe.enable_acceleration(Sampler(solver))
    rows = _rows(pipe, name, 4)
    assert [row.index for row in rows] == list(range(len(rows)))
    sigmas = [row.sigma for row in rows]
    assert all(s is not None for s in sigmas)


def _rows(pipe, name, steps):
    call(pipe, name, steps=steps)
    rows = pipe.acceleration.report().rows
    return [r for r in rows if r.branch == rows[0].branch]


def test_more_steps_come_nearer_to_the_limit():
    limit = call(make("wan", "flow_euler"), "wan", steps=150)
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(Sampler())
    errors = [float((call(pipe, "wan", steps=n) - limit).norm()) for n in (5, 20)]
    euler = float((call(make("wan", "flow_euler"), "wan", steps=20) - limit).norm())
    assert errors[1] < errors[0] and errors[1] < euler


@pytest.mark.parametrize("name", ["wan", "sd"])
def test_beside_a_caching_method(name):
    """A cache decides by step, a plan takes the scheduler's linear response from the one in use."""
    plan = Planned(nodes=(0, 1, 3), steps=5)
    adaptive = EasyCache(0.3, warmup=1)
    for method in (TaylorSeer(interval=2, warmup=1), plan, adaptive) if name == "wan" else (plan,):
        pipe = make(name)
        pipe.enable_acceleration(Sampler("AdamsBashforth", {"order": 2}), method)
        together = call(pipe, name)
        actions = [r.action for r in _rows(pipe, name, 5)]
        computed = actions.count("computed")
        assert computed == 3 if method is not adaptive else 2 <= computed < 5
        assert together.isfinite().all()
        pipe.disable_acceleration()
        pipe.scheduler = AdamsBashforth.from_config(pipe.scheduler.config)
        pipe.enable_acceleration(method)
        assert torch.equal(call(pipe, name), together)


def test_a_plan_that_skips_nothing_is_the_sampler_alone():
    pipe, alone = make("wan"), make("wan")
    pipe.enable_acceleration(Sampler(options={}), Planned(nodes=(0, 1, 2, 3, 4), steps=5))
    alone.enable_acceleration(Sampler(options={}))
    with pytest.warns(UserWarning, match="Planned skipped nothing"):
        assert torch.equal(call(pipe, "wan"), call(alone, "wan"))


def test_a_batch_is_its_samples_alone():
    pipe = make("wan")
    pipe.enable_acceleration(Sampler())
    pair = call(pipe, "wan", batch=2)
    for i in range(2):
        torch.testing.assert_close(pair[i : i + 1], call(pipe, "wan", seed=i), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "solver"), [("sd", "AdamsBashforth"), *(("wan", each) for each in SOLVERS)]
)
def test_a_deep_copy_samples_alike_and_a_saved_pipeline_too(name, solver, tmp_path):
    pipe, kind = make(name), SOLVERS[solver]
    options = {"AdamsBashforth": {"order": 3, "correct": True}, "STORK": {"derivatives": 1}}
    options |= {"DPMSolver": {"order": 3}, "UniPC": {"order": 3}, "ERSDE": {"noise": 0.5}}
    given = options.get(solver, {}) | {"grid": "sway"}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **given)
    expected = call(pipe, name)
    assert torch.equal(call(copy.deepcopy(pipe), name), expected)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(loaded.scheduler) is kind
    assert {k: loaded.scheduler.config[k] for k in given} == given
    loaded.set_progress_bar_config(disable=True)
    loaded.tokenizer, loaded.text_encoder = pipe.tokenizer, pipe.text_encoder
    torch.testing.assert_close(call(loaded, name), expected, rtol=1e-4, atol=1e-4)


def test_what_a_callback_changes_stays():
    """The correction is added to the state that the pipeline hands in."""
    for correct in (False, True):
        pipe = make("wan")
        pipe.scheduler = AdamsBashforth.from_config(pipe.scheduler.config, correct=correct)
        mask = torch.zeros_like(call(pipe, "wan"))
        mask[..., :2] = 1

        def hold(pipe, i, t, kwargs, mask=mask):
            return kwargs | {"latents": kwargs["latents"] * (1 - mask) + mask * 7}

        held = call(pipe, "wan", callback=hold)
        assert torch.equal(held[..., :2], torch.full_like(held[..., :2], 7.0))


@pytest.mark.parametrize("scheduler", ["flow_euler", "flow_unipc", "flow_dpm++"])
@pytest.mark.parametrize(("grid", "steps"), [("sway", 4), ("epss", 7)])
def test_levels_of_a_scheduler_of_diffusers(scheduler, grid, steps):
    seen = watched("wan", scheduler, steps=steps)
    pipe = make("wan", scheduler)
    own = pipe.scheduler
    pipe.enable_acceleration(Sampler("own", grid=grid))
    moved = call(pipe, "wan", steps=steps)
    rows = _rows(pipe, "wan", steps)
    assert [r.sigma for r in rows] == pytest.approx(levels(grid, steps)[:-1], abs=1e-5)
    assert [r.sigma for r in rows] != pytest.approx(seen.sigmas, abs=1e-2)
    assert moved.isfinite().all() and float(pipe.scheduler.sigmas[-1]) == 0
    pipe.disable_acceleration()
    assert pipe.scheduler is own
    assert torch.equal(call(pipe, "wan"), call(make("wan", scheduler), "wan"))


def test_align_your_steps_on_stable_diffusion():
    pipe = make("sd", "dpm++")
    pipe.enable_acceleration(Sampler("own", grid="ays-sd"))
    call(pipe, "sd", steps=10)
    listed = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(listed, abs=1e-2)
    call(pipe, "sd", steps=5)
    assert pipe.scheduler.timesteps.tolist()[0] == pytest.approx(999, abs=1e-2)
    assert len(pipe.scheduler.timesteps) == 5


@pytest.mark.parametrize("solver", ["AdamsBashforth", "own"])
def test_align_your_steps_on_sdxl_and_on_stable_video(solver):
    pipe = make("sdxl")
    pipe.enable_acceleration(Sampler(solver, grid="ays-sdxl"))
    assert call(pipe, "sdxl", steps=10).isfinite().all()
    listed = AysSchedules["StableDiffusionXLTimesteps"]
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(listed, abs=1e-2)
    video = {"sigma_max": 700.0, "sigma_min": 0.002, "timestep_type": "continuous"}
    pipe = make("svd")
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, prediction_type="v_prediction", use_karras_sigmas=True, **video
    )
    pipe.enable_acceleration(Sampler(solver, grid="ays-svd"))
    assert call(pipe, "svd", steps=10).isfinite().all()
    sigmas = AysSchedules["StableDiffusionVideoSigmas"]
    assert pipe.scheduler.sigmas.tolist() == pytest.approx(sigmas, rel=1e-4, abs=1e-6)
    told = [math.log(s) / 4 for s in sigmas[:-1]]
    assert pipe.scheduler.timesteps.tolist() == pytest.approx(told, abs=1e-4)
    pipe = make("sdxl")
    pipe.enable_acceleration(Sampler(solver, grid="ays-svd"))
    with pytest.raises(ValueError, match=r"begins at noise level sigma 700, .* end at 14.6"):
        call(pipe, "sdxl", steps=10)


@pytest.mark.parametrize("solver", ["AdamsBashforth", "own"])
@pytest.mark.parametrize("grid", ["uniform", "sway", "epss", "log-snr"])
def test_grids_begin_where_a_model_that_preserves_variance_does(solver, grid):
    """Levels above its highest would begin in place, where a step has no length."""
    pipe = make("sd", "euler")
    pipe.enable_acceleration(Sampler(solver, grid=grid))
    assert call(pipe, "sd", steps=10).isfinite().all()
    times, sigmas = pipe.scheduler.timesteps, pipe.scheduler.sigmas
    assert (times[1:] < times[:-1]).all() and (sigmas[1:] < sigmas[:-1]).all()
    assert float(times[0]) == pytest.approx(999)
    assert float(sigmas[0]) == pytest.approx(14.6, abs=0.1)


def test_sway_and_epss():
    even = 1 - levels("sway", 8, coefficient=0.0)
    assert even == pytest.approx([i / 8 for i in range(9)])
    for coefficient in (-1, -0.5, 0.8, 1.75):
        found = levels("sway", 8, coefficient)
        assert found[0] == 1 and found[-1] == pytest.approx(0) and (found[1:] < found[:-1]).all()
    for steps, listed in EPSS.items():
        assert len(listed) == steps + 1 and levels("epss", steps)[0] == 1
    assert levels("sway", 2)[1] == pytest.approx(2**-0.5)  # sigma = cos(pi t / 2) at half time
    with pytest.raises(ValueError, match="sway coefficient"):
        levels("sway", 8, 2.0)


def test_plans_keep_it():
    method = Sampler("UniPC", (("order", 3), ("correct", False)), grid="sway", sway=-0.5)
    assert Plan.from_json(Plan((method,)).to_json()).methods == (method,)
    assert dict(Sampler("DPMSolver").options) == {}


@pytest.mark.parametrize(("name", "scheduler"), [("wan", "flow_euler"), ("sd", "ddim")])
def test_levels_fitted_to_a_model(name, scheduler):
    """Calibrated levels serve runs of any length, and do better than the model's own."""
    prompts = ["a red circle on a dark background", "a blue square on a light background"]
    size = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16}
    size = size if name == "wan" else dict(TINY[name].call)
    pipe = make(name, scheduler)
    plan = accel.calibrate(pipe, prompts, Sampler(steps=5), steps=16, progress=False, **size)
    method = plan.methods[0]
    assert len(method.levels) == 5
    top = 1.0 if name == "wan" else 0.9
    assert method.levels[0] == pytest.approx(top, abs=0.1) and method.levels[0] <= 1
    assert Plan.from_json(plan.to_json()).methods == plan.methods
    pipe.enable_acceleration(Sampler())
    reference = call(pipe, name, steps=60)
    pipe.enable_acceleration(method)
    fitted = float((call(pipe, name, steps=5) - reference).norm())
    pipe.enable_acceleration(Sampler())
    assert fitted < float((call(pipe, name, steps=5) - reference).norm())
    pipe.enable_acceleration(method)
    assert len(_rows(pipe, name, 9)) == 9


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: Sampler("Euler"), "Sampler.solver must be own, AdamsBashforth"),
        (lambda: Sampler(options={"ordr": 2}), "AdamsBashforth has no option 'ordr'"),
        (lambda: Sampler(levels=(1.0, 0.5)), "Sampler.levels must be falling"),
        (lambda: Sampler(grid="fitted"), "Sampler.levels must be falling"),
        (lambda: Sampler(grid="fitted", levels=(0.5, 0.7)), "Sampler.levels must be falling"),
        (lambda: Sampler("own", {"order": 2}), "Sampler.options must be empty"),
    ],
)
def test_bad_settings_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_schedulers_that_cannot_be_served_are_refused():
    pipe = make("sd", "lcm")
    assert isinstance(pipe.scheduler, LCMScheduler)
    with pytest.raises(ValueError, match="sampler of a distilled model"):
        pipe.enable_acceleration(Sampler())
    for other in (EDMEulerScheduler(), IPNDMScheduler()):
        pipe.scheduler = other
        for method in (Sampler(), Sampler("own", grid="sway")):
            with pytest.raises(ValueError, match="it has no beta_schedule"):
                pipe.enable_acceleration(method)
    pipe = make("wan", "flow_heun")
    assert isinstance(pipe.scheduler, FlowMatchHeunDiscreteScheduler)
    pipe.enable_acceleration(Sampler("own", grid="sway"))
    with pytest.raises(ValueError, match="its levels cannot be moved"):
        call(pipe, "wan")
    assert set(SCHEDULERS) >= {"flow_euler", "dpm++"}
