"""Spectrum against its released fit, its schedule, and what the fit reproduces."""

import numpy as np
import pytest
import torch

from accel.caching import Spectrum
from accel.caching.policies import schedule
from accel.caching.spectrum import Fitted, Growing, chebyshev
from tests.tiny_pipelines import call, make

FASTER = [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
PAPER = [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]


def released_steps(total, warmup, window, flex):
    """The released loop (2603.01623): skips counted against a window that grows."""
    steps, skips = [], 0
    for step in range(total):
        actual = True
        if step >= warmup:
            actual = (skips + 1) % int(window) == 0
            if actual:
                window = round(window + flex, 3)
        skips = 0 if actual else skips + 1
        if actual:
            steps.append(step)
    return steps


def released_fit(steps, outputs, step, total, degree, ridge, mix):
    """Coefficients by Cholesky, T_k by their recurrence, mixed with the line through the last."""

    def design(t):
        tau = (torch.as_tensor(t, dtype=torch.float64) - total / 2) * 2 / total
        columns = [torch.ones_like(tau), tau]
        for _ in range(2, degree + 1):
            columns.append(2 * tau * columns[-1] - columns[-2])
        return torch.stack(columns[: degree + 1], dim=1)

    x, flat = design(steps), torch.stack(outputs).flatten(1)
    factor = torch.linalg.cholesky(x.T @ x + ridge * torch.eye(degree + 1, dtype=x.dtype))
    coefficients = torch.cholesky_solve(x.T @ flat, factor)
    fitted = (design([step]) @ coefficients).view_as(outputs[0])
    ahead = (step - steps[-1]) / (steps[-1] - steps[-2])
    line = outputs[-1] + ahead * (outputs[-1] - outputs[-2])
    return mix * fitted + (1 - mix) * line


@pytest.mark.parametrize(("growth", "steps"), [(0.75, PAPER), (3.0, FASTER)])
def test_computed_steps_are_those_the_authors_report(growth, steps):
    """14 and 10 of 50."""
    assert schedule(Growing(2, growth, 5), 50) == steps


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("flex", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("warmup", [1, 3, 5])
def test_computed_steps_are_those_of_the_released_loop(window, flex, warmup):
    for total in (5, 20, 50):
        expected = released_steps(total, warmup, window, flex)
        assert schedule(Growing(window, flex, warmup), total) == expected


@pytest.mark.parametrize(("degree", "ridge", "mix"), [(4, 0.1, 1.0), (4, 0.1, 0.5), (2, 1e-3, 0.0)])
def test_every_output_is_that_of_the_released_fit(degree, ridge, mix):
    pipe = make("flux_distilled")
    pipe.enable_acceleration(Spectrum(warmup=3, degree=degree, ridge=ridge, mix=mix))
    computed, used, step = [], [], pipe.scheduler.step

    def watch(model_output, *args, **kwargs):
        used.append(model_output.double())
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = watch
    pipe.transformer.register_forward_hook(lambda m, a, out: computed.append(out[0].double()))
    call(pipe, "flux_distilled", steps=14, guidance=1.0)
    steps = released_steps(14, 3, 2, 0.75)
    assert len(computed) == len(steps) < 10
    for i in range(14):
        known = [k for k in range(len(steps)) if steps[k] < i]
        if i not in steps:
            outputs = [computed[k] for k in known]
            expected = released_fit([steps[k] for k in known], outputs, i, 14, degree, ridge, mix)
            torch.testing.assert_close(used[i], expected, rtol=1e-4, atol=1e-5)


def test_without_ridge_polynomials_of_its_degree_are_exact():
    """Also forward in time, and relative to the newest output."""
    anchors = (20, 15, 11, 8, 6, 4, 2, 0)

    def polynomial(s):
        return 3 - 0.5 * s + 0.02 * s**2 - 0.001 * s**3

    values = np.array([polynomial(s) for s in anchors])
    for relative in (False, True):
        for index in (21, 24, 30):
            weights = chebyshev(anchors, index, 50, 3, 1e-12, relative)
            assert np.dot(weights, values) == pytest.approx(polynomial(index), rel=1e-5)


def test_the_published_ridge_pulls_what_stays_towards_zero_and_relative_does_not():
    anchors = tuple(i for i in reversed(PAPER) if i < 45)
    weights = chebyshev(anchors, 45, 50, 4, 0.1, False)
    assert sum(weights) == pytest.approx(0.7304, abs=1e-3)
    assert sum(chebyshev(anchors, 45, 50, 4, 0.1, True)) == pytest.approx(1)


def fitted(relative, length=6):
    return Fitted(lambda a, i: list(chebyshev(tuple(a), i, 50, 4, 0.1, relative)), length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_outputs_that_stay(dtype, count):
    published, relative, value = fitted(False), fitted(True), torch.randn(50).to(dtype)
    for i in range(count):
        published.keep(2 * i, value)
        relative.keep(2 * i, value)
    assert torch.equal(relative.forecast(2 * count), value)
    share = sum(chebyshev(tuple(reversed(range(0, 2 * count, 2))), 2 * count, 50, 4, 0.1, False))
    assert 0 < share < 1
    torch.testing.assert_close(published.forecast(2 * count), (share * value.float()).to(dtype))
    torch.testing.assert_close(published.values[0][0], value)


def test_what_is_no_number_is_the_newest():
    history = fitted(False)
    for index in (0, 2, 4):
        history.keep(index, (torch.ones(3), torch.tensor([True, index == 4]), None))
    output, mask, absent = history.forecast(6)
    assert output.max() < 1 and mask.tolist() == [True, True] and absent is None


def test_it_says_how_many_outputs_it_keeps():
    pipe = make("wan")
    pipe.enable_acceleration(Spectrum())
    assert "computes 14 of 50 steps (28%)" in pipe.acceleration.explain(50)
    assert "keeps 14 per branch" in pipe.acceleration.explain(50)
    call(pipe, "wan", steps=9)  # 7 computed outputs (4, 2, 8, 8) in float32, two branches
    assert pipe.acceleration.report().bytes_held == 2 * 7 * 512 * 4
    pipe.enable_acceleration(Spectrum(most=3))
    call(pipe, "wan", steps=9)
    assert pipe.acceleration.report().bytes_held == 2 * 3 * 512 * 4


@pytest.mark.parametrize(
    ("field", "value"),
    [("growth", -1.0), ("ridge", 0.0), ("mix", 1.5), ("degree", 11), ("carrier", "module")],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"Spectrum.{field} must be"):
        Spectrum(**{field: value})
