"""Samplers on Gaussian data: orders on uneven grids, exactness, the last step, both model kinds."""

import copy
import pickle

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from accel.samplers import AdamsBashforth, DPMSolver, PseudoCorrector, UniPC
from accel.samplers.multistep import derivatives, integral
from tests.samplers.gaussian import FLOW, SCALES, SD, UNEVEN, order, predict, run, start

EVERY = [
    AdamsBashforth,
    lambda **c: AdamsBashforth(order=3, correct=True, **c),
    DPMSolver,
    lambda **c: DPMSolver(order=3, **c),
    PseudoCorrector,
    lambda **c: PseudoCorrector(heun_steps=2, evaluate_last=True, **c),
    UniPC,
    lambda **c: UniPC(order=3, **c),
]
every = pytest.mark.parametrize("make", EVERY, ids=lambda m: type(m()).__name__)
ORDERS = [
    (lambda: AdamsBashforth(order=1), 1),
    (lambda: AdamsBashforth(order=2), 2),
    (lambda: AdamsBashforth(order=1, correct=True), 2),
    (lambda: AdamsBashforth(order=2, correct=True), 3),
    (lambda: PseudoCorrector(), 2),
    (lambda: PseudoCorrector(heun_steps=3), 2),
    (lambda: PseudoCorrector(evaluate_last=True), 2),
    (lambda: DPMSolver(), 2),
    (lambda: UniPC(correct=False), 2),
]


def _id(value):
    return type(value()).__name__ if callable(value) else str(value)


@pytest.mark.parametrize(("make", "expected"), ORDERS, ids=_id)
def test_order_on_an_uneven_grid(make, expected):
    assert order(make) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_integrals_are_exact_for_polynomials_on_uneven_nodes(count):
    nodes = [0.5, 0.62, 0.9, 0.97][:count]
    weights = integral(nodes, 0.5, 0.31)
    for degree in range(count):
        exact = (0.31 ** (degree + 1) - 0.5 ** (degree + 1)) / (degree + 1)
        found = sum(w * n**degree for w, n in zip(weights, nodes, strict=True))
        assert found == pytest.approx(exact, abs=1e-12)


def test_two_nodes_give_the_weights_of_adams_bashforth():
    h, before = -0.2, -0.1
    assert integral([0.5, 0.6], 0.5, 0.3) == pytest.approx(
        [h * (1 + h / (2 * before)), -h * h / (2 * before)]
    )
    with pytest.raises(ValueError, match="must differ"):
        integral([0.5, 0.5], 0.5, 0.3)


def test_derivatives_are_right_on_uneven_gaps():
    """Published code takes 0.375 for the second derivative of t^2 at gaps .05 and .10, and twice
    the slope of a line at third order."""
    nodes = [0.3, 0.35, 0.45, 0.6]
    squares, lines = np.array(nodes) ** 2, 2 * np.array(nodes)
    assert derivatives(nodes[:3], 2) @ squares[:3] == pytest.approx([0.6, 2.0])
    assert derivatives(nodes, 3) @ lines == pytest.approx([2.0, 0.0, 0.0], abs=1e-9)


def test_second_order_is_exact_where_the_velocity_is_linear_in_the_level():
    """From the second step on: the first has no slope to go by."""
    scheduler, slope = AdamsBashforth(), torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.float64)
    scheduler.set_timesteps(sigmas=UNEVEN)
    levels, x = [*UNEVEN, 0.0], torch.zeros(1, 3, dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        moved = scheduler.step(1 + slope * levels[i], t, x, return_dict=False)[0]
        width, middle = levels[i + 1] - levels[i], (levels[i + 1] + levels[i]) / 2
        if i:
            torch.testing.assert_close(moved - x, width * (1 + slope * middle), rtol=0, atol=1e-6)
        x = moved


@every
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
    if steps > 1:
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


@every
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


@every
def test_a_run_that_was_broken_off_leaves_nothing(make):
    scheduler, x = make(), start()
    scheduler.set_timesteps(6)
    whole = run(scheduler, x)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps[:3]:
        scheduler.step(x, t, x)
    scheduler.set_timesteps(6)
    assert torch.equal(run(scheduler, x), whole)


@every
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
