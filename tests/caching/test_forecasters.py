"""Forecasts against a transcription of the published update, and exact polynomials."""

import math

import pytest
import torch

from accel.caching.forecasters import hold, newton, taylor
from accel.caching.policies import Interval, schedule
from accel.caching.state import History


def forecast(weights, anchors, values, index):
    """The forecaster's combination of plain numbers; newest anchor first."""
    return sum(w * v for w, v in zip(weights(anchors, index), values, strict=True))


def released(recorded, order, interval, warmup):
    """TaylorSeer's released loop, one step after another (2503.06923), on recorded outputs.

    Returns what each step used: the recorded output where it is computed, else the forecast.
    """
    factors, last, used, counter = {}, None, [], 0
    for step, output in enumerate(recorded):
        if step < warmup or counter == interval - 1:
            counter, new = 0, {0: output}
            for i in range(order):
                if i not in factors or step <= warmup - 2:
                    break
                new[i + 1] = (new[i] - factors[i]) / (step - last)
            factors, last = new, step
            used.append(output)
        else:
            counter += 1
            x = step - last
            used.append(sum(f * x**i / math.factorial(i) for i, f in factors.items()))
    return used


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize(("interval", "warmup"), [(2, 1), (3, 2), (6, 3), (4, 5)])
def test_taylor_is_the_released_update(order, interval, warmup):
    recorded = list(torch.randn(40, 3, 5, dtype=torch.float64).cumsum(0))
    expected = released(recorded, order, interval, warmup)
    history, computed = History(taylor, order + 1), schedule(Interval(interval, warmup), 40)
    for step, output in enumerate(recorded):
        if step in computed:
            if step >= warmup - 2:
                history.keep(step, output)
        else:
            torch.testing.assert_close(history.forecast(step), expected[step])


ANCHORS = [(7,), (9, 4), (12, 11, 5), (20, 14, 13, 5), (30, 29, 20, 12, 3)]


@pytest.mark.parametrize("anchors", ANCHORS, ids=str)
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_newton_is_exact_to_its_degree_whatever_the_gaps(anchors, ahead):
    degree, index = len(anchors) - 1, anchors[0] + ahead

    def polynomial(s):
        return sum((-1) ** k * (k + 1) * (s / 10) ** k for k in range(degree + 1))

    values = [polynomial(s) for s in anchors]
    assert forecast(newton, anchors, values, index) == pytest.approx(polynomial(index))
    higher = [v + (s / 10) ** (degree + 1) for v, s in zip(values, anchors, strict=True)]
    exact = polynomial(index) + (index / 10) ** (degree + 1)
    assert forecast(newton, anchors, higher, index) != pytest.approx(exact)


@pytest.mark.parametrize("anchors", ANCHORS, ids=str)
def test_taylor_is_exact_for_constants_and_lines(anchors):
    index = anchors[0] + 3
    assert forecast(taylor, anchors, [2.5] * len(anchors), index) == pytest.approx(2.5)
    if len(anchors) > 1:
        line = [4 - 3 * s for s in anchors]
        assert forecast(taylor, anchors, line, index) == pytest.approx(4 - 3 * index)


@pytest.mark.parametrize(("c", "h", "x"), [(1.0, 2, 1), (0.5, 3, 2), (1.5, 4, 3)])
def test_taylor_misses_a_parabola_by_the_known_amount(c, h, x):
    """Backward differences are not derivatives: the forecast of c s^2 is c h x too low."""
    anchors = (4 * h, 3 * h, 2 * h)
    values = [c * s * s for s in anchors]
    index = anchors[0] + x
    error = forecast(taylor, anchors, values, index) - c * index**2
    assert error == pytest.approx(-c * h * x)
    assert forecast(newton, anchors, values, index) == pytest.approx(c * index**2)


def test_taylor_and_newton_on_a_parabola_by_hand():
    values = [0.5 * s * s for s in (14, 11, 8)]  # 98, 60.5, 32: differences 12.5, 1
    assert forecast(taylor, (14, 11, 8), values, 17) == pytest.approx(98 + 12.5 * 3 + 4.5)
    assert forecast(newton, (14, 11, 8), values, 17) == pytest.approx(144.5)


@pytest.mark.parametrize("weights", [taylor, newton])
def test_a_rising_line_goes_on_rising(weights):
    """A sign error in the offset passes every look at pictures and fails here."""
    steps = [forecast(weights, (10, 6), (100.0, 60.0), i) for i in (11, 12, 13)]
    assert steps == pytest.approx([110, 120, 130])


@pytest.mark.parametrize("weights", [hold, taylor, newton])
def test_one_anchor_is_reused(weights):
    history = History(weights, 3)
    value = torch.randn(4)
    history.keep(5, value)
    assert torch.equal(history.forecast(9), value)


@pytest.mark.parametrize("weights", [hold, taylor, newton])
@pytest.mark.parametrize("anchors", ANCHORS, ids=str)
def test_weights_sum_to_one(weights, anchors):
    assert sum(weights(anchors, anchors[0] + 4)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [hold, taylor, newton])
@pytest.mark.parametrize("length", range(1, 6))
def test_equal_values_are_forecast_exactly(weights, dtype, length):
    history, value = History(weights, length), torch.randn(50).to(dtype)
    for index in range(0, 3 * length, 3):
        history.keep(index, value)
    for index in range(3 * length, 3 * length + 4):
        assert torch.equal(history.forecast(index), value)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_half_precision_is_combined_in_full(length):
    """Rounded once, at the end: as good as combining in float64 and rounding."""
    history = History(newton, length)
    values = [torch.randn(200).bfloat16() for _ in range(length)]
    for index, value in enumerate(values):
        history.keep(4 * index, value)
    index = 4 * length - 1
    weights = newton(history.anchors, index)
    wide = zip(weights, reversed(values), strict=True)
    exact = sum(w * v.double() for w, v in wide)
    got = history.forecast(index)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-4)


def test_history_shares_no_memory_and_keeps_structure():
    history, value = History(taylor, 2), torch.ones(3)
    history.keep(0, (value, [value * 2]))
    value.zero_()
    first = history.forecast(1)
    assert torch.equal(first[0], torch.ones(3)) and torch.equal(first[1][0], torch.full((3,), 2.0))
    first[0].zero_()
    assert torch.equal(history.forecast(1)[0], torch.ones(3))
    assert history.bytes() == 2 * 3 * 4
    for index in (3, 5, 7):
        history.keep(index, (torch.ones(3), [torch.ones(3)]))
    assert list(history.anchors) == [7, 5] and history.bytes() == 2 * 2 * 3 * 4


def test_masks_and_absent_outputs_are_not_extrapolated():
    history = History(taylor, 2)
    for index in (0, 2):
        mask = torch.tensor([True, False, index == 0])
        history.keep(index, (torch.full((3,), float(index)), mask, None, "text"))
    output, mask, absent, text = history.forecast(3)
    assert output.tolist() == [3.0] * 3 and mask.tolist() == [True, False, False]
    assert (absent, text) == (None, "text")
    assert history.bytes() == 2 * (3 * 4 + 3)
