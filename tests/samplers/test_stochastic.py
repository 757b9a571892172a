"""ER-SDE and Restart end in the data's distribution; STORK is the rule it says it is."""

import copy

import numpy as np
import pytest
import torch

from accel.samplers import ERSDE, STORK, AdamsBashforth, Restart
from accel.samplers.er_sde import START, scale
from accel.samplers.stork import inner_moments
from tests.samplers.gaussian import FLOW, SCALES, SD, UNEVEN, order, predict, run, start
from tests.tiny_pipelines import call, make


def many(count=4096):
    return torch.randn(count, len(SCALES), generator=torch.Generator().manual_seed(1)).double()


def spread(found):
    return float((found.std(0) / SCALES).log().abs().max())


@pytest.mark.parametrize(
    "make_it",
    [ERSDE, lambda **c: ERSDE(order=2, **c), lambda **c: Restart(((0.1, 0.67, 20, 2),), **c)],
)
def test_samples_have_the_spread_of_the_data(make_it):
    scheduler = make_it(grid="uniform")
    scheduler.set_timesteps(150)
    found = run(scheduler, many(), generator=torch.Generator().manual_seed(3))
    assert spread(found) < 0.08  # of 4096 samples about 0.04 by chance


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("random", [ERSDE, Restart])
def test_random_samplers_of_models_that_preserve_variance(random, kind):
    """More steps come nearer to the data's distribution, whatever the model predicts; of data wider
    than the lowest level of these models."""
    found, wide = [], SCALES > 0.2
    for steps in (8, 50):
        scheduler = random.from_config(SD.config, prediction_type=kind, timestep_spacing="linspace")
        scheduler.set_timesteps(steps)
        ran = run(scheduler, many(2048), kind, generator=torch.Generator().manual_seed(3))
        found.append(float((ran.std(0) / SCALES)[wide].log().abs().max()))
    assert found[1] < found[0] / 1.5 and found[1] < 0.15, found


def test_noise_of_er_sde_matters():
    scheduler = ERSDE(grid="uniform", noise=0.0)
    scheduler.set_timesteps(150)
    assert spread(run(scheduler, many())) > 0.3


def test_er_sde_starts_where_levels_lie_close_to_noise():
    scheduler = ERSDE(grid="sway")
    scheduler.set_timesteps(200)
    assert run(scheduler, start()).isfinite().all()


@pytest.mark.parametrize("used", [1, 2])
def test_er_sde_is_exact_where_x0_is_a_polynomial_of_lambda(used):
    """Without noise, x / alpha = f(lambda) C + f(lambda) times the integral of f' x0 / f^2."""
    levels = [0.9, 0.86, 0.8, 0.7]
    lambdas = np.array([g / (1 - g) for g in levels])
    scheduler = ERSDE(order=used, noise=0.0)
    scheduler.set_timesteps(sigmas=levels)
    polynomial = np.polynomial.Polynomial([1.0, -0.3, 0.05][:used])
    x = torch.tensor([[2.0]], dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps[:3]):
        y, x0 = x, float(polynomial(lambdas[i]))
        x = scheduler.step((x - x0) / levels[i], t, x, return_dict=False)[0]
        if i != used - 1:  # the first step with all its derivatives
            continue
        now, then = lambdas[i], lambdas[i + 1]
        points = np.linspace(then, now, 200001)
        f = np.array([scale(p) for p in points])
        kernel = np.gradient(f, points) / f**2 * polynomial(points)
        exact = scale(then) * (float(y) / (1 - levels[i]) / scale(now))
        exact += scale(then) * np.trapezoid(kernel, points)
        assert float(x) / (1 - levels[i + 1]) == pytest.approx(exact, rel=2e-4)


@pytest.mark.parametrize("kind", ["flow_prediction", "epsilon"])
def test_er_sde_ends_in_x0_at_level_zero(kind):
    """The released code for models that preserve variance yields NaN there."""
    config = (FLOW if kind == "flow_prediction" else SD).config
    scheduler = ERSDE.from_config(config, prediction_type=kind)
    for steps in (1, 2, 12):
        scheduler.set_timesteps(steps)
        assert run(scheduler, start(), kind).isfinite().all()
    assert START < 1 and np.isfinite(scale(START / (1 - START)))


def test_stork_is_exact_for_a_line_and_of_second_order():
    for inner in (3, 10, 50):
        assert inner_moments(inner)[:2] == pytest.approx((1.0, 0.5))
    assert inner_moments(200)[2] == pytest.approx(0.25, abs=1e-3)  # a rule of second order
    assert order(lambda: STORK(derivatives=1)) == pytest.approx(2, abs=0.15)
    assert order(lambda: STORK(derivatives=3)) == pytest.approx(2, abs=0.3)
    for each in (1, 2, 3):
        scheduler, slope = STORK(derivatives=each), torch.tensor([[2.0, -1.0]]).double()
        scheduler.set_timesteps(sigmas=UNEVEN)
        levels, x = [*UNEVEN, 0.0], torch.zeros(1, 2).double()
        for i, t in enumerate(scheduler.timesteps):
            moved = scheduler.step(1 + slope * levels[i], t, x, return_dict=False)[0]
            width, middle = levels[i + 1] - levels[i], (levels[i + 1] + levels[i]) / 2
            if i:
                expected = width * (1 + slope * middle)
                torch.testing.assert_close(moved - x, expected, rtol=0, atol=1e-5)
            x = moved


def test_stork_with_one_derivative_is_adams_bashforth():
    x, found = start(), []
    for scheduler in (STORK(derivatives=1), AdamsBashforth()):
        scheduler.set_timesteps(sigmas=UNEVEN)
        found.append(run(scheduler, x))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_restart_goes_back_up_and_keeps_the_levels():
    scheduler = Restart(intervals=((0.25, 0.7, 3, 2),))
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    sigmas = [round(s, 2) for s in scheduler.sigmas.tolist()]
    middle = sigmas[4]
    assert 0.25 < middle < 0.7
    assert sigmas == [1.0, 0.75, 0.5, 0.7, middle, 0.7, middle, 0.25, 0.0]
    assert scheduler.timesteps.tolist()[3] == pytest.approx(700, abs=0.1)
    assert len(scheduler.timesteps) == 4 + 2 * (3 - 1)


def test_a_restart_jump_keeps_the_distribution():
    """From exact samples at the low level to samples of the variance that the high one has."""
    scheduler = Restart(intervals=((0.25, 0.7, 2, 1),), order=1)
    scheduler.set_timesteps(sigmas=[0.26, 0.25])
    x = many(20000) * ((0.74 * SCALES) ** 2 + 0.26**2).sqrt()
    t = scheduler.timesteps[0]
    output = predict("flow_prediction", x, 0.74, 0.26)
    found = scheduler.step(output, t, x, torch.Generator().manual_seed(0), return_dict=False)[0]
    expected = ((0.3 * SCALES) ** 2 + 0.49).sqrt()
    assert (found.std(0) / expected - 1).abs().max() < 0.03


def test_restart_without_a_way_back_is_refused():
    with pytest.raises(ValueError, match="0 < low < high < 1"):
        Restart(intervals=((0.5, 0.4, 3, 1),))
    with pytest.raises(ValueError, match="give more steps or another interval"):
        Restart(intervals=((0.1, 0.3, 3, 1),)).set_timesteps(sigmas=[1.0, 0.5])


@pytest.mark.parametrize("kind", [ERSDE, STORK, Restart])
def test_bad_settings_and_files(kind, tmp_path):
    for wrong in ({"order": 4}, {"noise": -1.0}) if kind is ERSDE else ():
        with pytest.raises(ValueError, match="must be"):
            kind(**wrong)
    for wrong in ({"derivatives": 4}, {"inner": 2}) if kind is STORK else ():
        with pytest.raises(ValueError, match="must be"):
            kind(**wrong)
    scheduler = kind(shift=2.0)
    scheduler.save_pretrained(tmp_path)
    ran = []
    for each in (scheduler, kind.from_pretrained(tmp_path), copy.deepcopy(scheduler)):
        each.set_timesteps(8)
        ran.append(run(each, start(), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(ran[0], ran[1]) and torch.equal(ran[0], ran[2])


@pytest.mark.parametrize(("name", "kind"), [("sd", ERSDE), ("wan", ERSDE), ("wan", Restart)])
def test_random_samplers_in_pipelines_repeat(name, kind):
    pipe = make(name)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    first = call(pipe, name)
    assert first.isfinite().all() and torch.equal(call(pipe, name), first)


def test_er_sde_transcribed():
    """The third-order update of the paper, with its integrals by 100 points."""
    levels = [0.9, 0.86, 0.8, 0.7, 0.65]
    scheduler = ERSDE(noise=0.0)
    scheduler.set_timesteps(sigmas=levels)
    x = expected = start()
    lambdas, found, slopes = [g / (1 - g) for g in levels], [], []
    for i in range(4):
        g, now, then = levels[i], lambdas[i], lambdas[i + 1]
        output = predict("flow_prediction", expected, 1 - g, g)
        x = scheduler.step(output, scheduler.timesteps[i], x, return_dict=False)[0]
        x0 = expected - g * output
        keep, signal = scale(then) / scale(now), 1 - levels[i + 1]
        moved = signal / (1 - g) * keep * expected + signal * (1 - keep) * x0
        points = then + (np.arange(100) + 0.5) * (now - then) / 100
        f, width = np.array([scale(p) for p in points]), (now - then) / 100
        if i > 0:
            slope = (x0 - found[-1]) / (now - lambdas[i - 1])
            moved = moved + signal * (then - now + scale(then) * width * (1 / f).sum()) * slope
            if i > 1:
                bend = (slope - slopes[-1]) / ((now - lambdas[i - 2]) / 2)
                weight = (then - now) ** 2 / 2 + scale(then) * width * ((points - now) / f).sum()
                moved = moved + signal * weight * bend
            slopes.append(slope)
        found.append(x0)
        expected = moved
    torch.testing.assert_close(x, expected, rtol=1e-3, atol=1e-3)
