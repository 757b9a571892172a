"""Samplers on Gaussian data: levels, the last step, both kinds of model, copies and files."""

import copy
import pickle

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from accel.samplers import (
    ERSDE,
    STORK,
    AdamsBashforth,
    DPMSolver,
    PseudoCorrector,
    Restart,
    UniPC,
)
from tests.samplers.gaussian import FLOW, SCALES, SD, predict, run, start

EVERY = [
    AdamsBashforth,
    lambda **c: AdamsBashforth(order=3, correct=True, **c),
    DPMSolver,
    lambda **c: DPMSolver(order=3, **c),
    PseudoCorrector,
    lambda **c: PseudoCorrector(heun_steps=2, evaluate_last=True, **c),
    UniPC,
    lambda **c: UniPC(order=3, **c),
    STORK,
]
RANDOM = [ERSDE, Restart]
every = pytest.mark.parametrize("make", EVERY, ids=lambda m: type(m()).__name__)
random_too = pytest.mark.parametrize("make", EVERY + RANDOM, ids=lambda m: type(m()).__name__)


@random_too
@pytest.mark.parametrize("steps", [1, 4, 5, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_last_step_ends_in_finite_data(make, steps, shift):
    scheduler = make(shift=shift)
    if isinstance(scheduler, PseudoCorrector) and scheduler.config.heun_steps > steps:
        return
    scheduler.set_timesteps(steps)
    x = start()
    found = run(scheduler, x)
    assert float(scheduler.sigmas[-1]) == 0
    assert found.isfinite().all()
    if steps > 1 and not isinstance(scheduler, ERSDE | Restart):
        assert (found - x * SCALES).norm() < (x - x * SCALES).norm()


@every
def test_levels_are_those_of_flow_euler(make):
    for mu, config in ((None, {"shift": 3.0}), (0.8, {"use_dynamic_shifting": True})):
        plain = FlowMatchEulerDiscreteScheduler(**config)
        plain.set_timesteps(6, mu=mu)
        ours = type(make()).from_config(plain.config)
        ours.set_timesteps(6, mu=mu)
        assert torch.equal(ours.sigmas, plain.sigmas) and ours.config.shift == plain.config.shift
        assert torch.equal(ours.timesteps, plain.timesteps)


def test_first_order_is_flow_euler_bit_for_bit():
    plain, ours = copy.deepcopy(FLOW), AdamsBashforth.from_config(FLOW.config, order=1)
    x, ran = start().float(), []
    for scheduler in (plain, ours):
        scheduler.set_timesteps(7)
        ran.append(run(scheduler, x))
    torch.testing.assert_close(ran[0], ran[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@every
def test_models_that_preserve_variance(make, kind):
    """Twice the steps take a third of the error or more, whatever the model predicts."""
    errors = []
    for steps in (10, 20):
        scheduler = type(make()).from_config(
            SD.config, prediction_type=kind, timestep_spacing="linspace"
        )
        scheduler.set_timesteps(steps)
        x = start()
        variance = scheduler._levels[0].signal ** 2 * SCALES**2 + scheduler._levels[0].noise ** 2
        errors.append(float((run(scheduler, x, kind) - x * SCALES / variance.sqrt()).norm()))
    assert errors[1] < errors[0] / 1.5


@pytest.mark.parametrize(
    "kind", [AdamsBashforth, lambda **c: AdamsBashforth(correct=True, **c), DPMSolver, UniPC]
)
def test_a_level_that_comes_twice_changes_nothing(kind):
    """A thousand steps of a model of a thousand timesteps have one."""
    found = []
    for sigmas in ([1.0, 0.8, 0.5, 0.2], [1.0, 0.8, 0.5, 0.5, 0.2]):
        scheduler = kind()
        scheduler.set_timesteps(sigmas=sigmas)
        scheduler.set_begin_index(0)
        found.append(run(scheduler, start()))
    torch.testing.assert_close(*found)
    scheduler = AdamsBashforth.from_config(SD.config, steps_offset=1)
    scheduler.set_timesteps(1000)
    assert run(scheduler, start(), "epsilon").isfinite().all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_first_order_is_ddim_on_the_same_levels(kind):
    """Euler in y is DDIM in x, on diffusers' Euler levels."""
    ours = AdamsBashforth.from_config(SD.config, order=1, prediction_type=kind)
    euler = EulerDiscreteScheduler.from_config(ours.config)
    euler.set_timesteps(10)
    ours.set_timesteps(10)
    assert torch.equal(ours.sigmas, euler.sigmas)
    x = start()
    scaled = x * (euler.sigmas[0].double() ** 2 + 1).sqrt()
    for i, t in enumerate(euler.timesteps):
        sigma = float(euler.sigmas[i])
        inner = scaled / (sigma**2 + 1) ** 0.5
        signal = 1 / (sigma**2 + 1) ** 0.5
        output = predict(kind, inner, signal, sigma * signal)
        scaled = euler.step(output, t, scaled, return_dict=False)[0]
        x = ours.step(output, ours.timesteps[i], x, return_dict=False)[0]
    torch.testing.assert_close(x, scaled.to(x.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(DPMSolver, DPMSolverMultistepScheduler), (UniPC, UniPCMultistepScheduler)]
)
def test_dpm_and_unipc_are_diffusers_own_on_the_same_levels(ours, theirs, order):
    flags = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": order}
    other, mine = theirs(**flags), ours(order=order)
    other.set_timesteps(18)
    mine.set_timesteps(18)
    times = other.sigmas[:-1] * 1000
    other.timesteps = times
    mine.sigmas, mine.timesteps = other.sigmas, times
    mine._reset()
    x = start()
    torch.testing.assert_close(run(mine, x), run(other, x), rtol=1e-4, atol=1e-4)


def test_cogvideox_levels():
    plain = CogVideoXDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    ours = AdamsBashforth.from_config(plain.config)
    ours.set_timesteps(10)
    plain.set_timesteps(10)
    assert ours.timesteps.tolist() == plain.timesteps.tolist()
    abar = plain.alphas_cumprod[plain.timesteps[1:]].double()
    torch.testing.assert_close(
        ours.sigmas[1:-1].double(), ((1 - abar) / abar).sqrt(), rtol=2e-3, atol=0
    )


def test_noise_for_image_to_image_is_what_diffusers_adds():
    clean, noise = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    flow, plain = AdamsBashforth.from_config(FLOW.config), copy.deepcopy(FLOW)
    for scheduler in (flow, plain):
        scheduler.set_timesteps(8)
    for begin in (None, 3):
        for scheduler in (flow, plain):
            scheduler._begin_index = begin
        t = flow.timesteps[3:4].repeat(2)
        torch.testing.assert_close(
            flow.scale_noise(clean, t, noise), plain.scale_noise(clean, t, noise)
        )
    ours = AdamsBashforth.from_config(SD.config)
    ours.set_timesteps(10)
    t = ours.timesteps[4:5].repeat(2)
    torch.testing.assert_close(
        ours.add_noise(clean, noise, t), SD.add_noise(clean, noise, t.long()), rtol=1e-4, atol=1e-4
    )
    assert ours.scale_model_input(clean, t[0]) is clean and len(ours) == 1000


@random_too
def test_copies_and_files_make_the_same_sampler(make, tmp_path):
    scheduler = make(shift=2.0)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    x, ran = start(), []
    copies = (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), loaded)
    for each in (scheduler, *copies):
        each.set_timesteps(6)
        ran.append(run(each, x))
    assert all(torch.equal(ran[0], other) for other in ran[1:])
    back = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    assert back.config.shift == 2.0


@random_too
def test_a_run_that_was_broken_off_leaves_nothing(make):
    scheduler, x = make(), start()
    scheduler.set_timesteps(6)
    whole = run(scheduler, x)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        scheduler.step(x, t, x)
    scheduler.set_timesteps(6)
    assert torch.equal(run(scheduler, x), whole)


@random_too
def test_half_precision_keeps_its_dtype(make):
    scheduler = make()
    scheduler.set_timesteps(5)
    x = start().bfloat16()
    for t in scheduler.timesteps:
        x = scheduler.step(x * 0.1, t, x).prev_sample
        assert x.dtype == torch.bfloat16
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamsBashforth(order=5), "order must be 1, 2, 3 or 4, got 5"),
        (lambda: DPMSolver(order=1), "order must be 2 or 3"),
        (lambda: UniPC(order=4), "order must be 2 or 3"),
        (lambda: AdamsBashforth(grid="even"), "grid must be one of model, uniform"),
        (lambda: AdamsBashforth(prediction_type="x"), "prediction_type must be one of"),
        (lambda: PseudoCorrector(heun_steps=0), "heun_steps must be 1 or more"),
        (lambda: PseudoCorrector(heun_steps=9).set_timesteps(4), "do not fit in 4 steps"),
        (lambda: AdamsBashforth(grid="epss").set_timesteps(9), "epss has lists for 5, 6, 7"),
        (lambda: AdamsBashforth(grid="ays-sd").set_timesteps(9), "none for flow models"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_steps_that_are_not_there_are_refused():
    scheduler = AdamsBashforth()
    scheduler.set_timesteps(2)
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="timestep 3 is none of this run's"):
        scheduler.step(x, 3.0, x)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(RuntimeError, match="all 2 steps are done"):
        scheduler.step(x, t, x)
