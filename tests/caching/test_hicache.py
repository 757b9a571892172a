"""HiCache against its released loop, and the direction of its forecasts."""

import math

import numpy as np
import pytest
import torch

from accel.caching import HiCache
from accel.caching.forecasters import hermite, hold, taylor
from accel.caching.policies import Interval, schedule
from accel.caching.state import History
from tests.tiny_pipelines import call, make

EXACT = math.sqrt(0.5)


def released(recorded, order, sigma, interval, warmup):
    """What each step uses: a counter, finite differences, H_n by numpy (2508.16984)."""
    differences, last, used, counter = {}, None, [], 0
    for step, output in enumerate(recorded):
        if step < warmup or counter == interval - 1:
            counter, new = 0, {0: output}
            for i in range(order):
                if i not in differences or step <= warmup - 2:
                    break
                new[i + 1] = (new[i] - differences[i]) / (step - last)
            differences, last = new, step
            used.append(output)
            continue
        counter += 1
        y, total = sigma * (step - last), 0
        for i, difference in differences.items():
            polynomial = np.polynomial.hermite.hermval(y, [0] * i + [1])
            total = total + difference * (sigma**i * polynomial / math.factorial(i))
        used.append(total)
    return used


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize(("sigma", "interval", "warmup"), [(0.5, 5, 3), (0.71, 4, 2), (0.3, 3, 1)])
def test_forecasts_are_those_of_the_released_loop(order, sigma, interval, warmup):
    recorded = list(torch.randn(30, 3, 5, dtype=torch.float64).cumsum(0))
    expected = released(recorded, order, sigma, interval, warmup)
    history = History(hermite(sigma), order + 1)
    computed = schedule(Interval(interval, warmup), 30)
    for step, output in enumerate(recorded):
        if step not in computed:
            torch.testing.assert_close(history.forecast(step), expected[step])
        elif step >= warmup - 2:
            history.keep(step, output)


def test_the_whole_method_is_the_released_loop():
    """Every output the sampler is given, on a pipeline without guidance."""
    pipe = make("flux_distilled")
    pipe.enable_acceleration(HiCache(interval=3, order=2, warmup=3))
    computed, used, step = [], [], pipe.scheduler.step

    def watch(model_output, *args, **kwargs):
        used.append(model_output.clone())
        return step(model_output, *args, **kwargs)

    pipe.scheduler.step = watch
    pipe.transformer.register_forward_hook(lambda m, a, out: computed.append(out[0].clone()))
    call(pipe, "flux_distilled", steps=10, guidance=1.0)
    steps = [0, 1, 2, 5, 8]
    assert len(computed) == len(steps)
    for index in (3, 4, 6, 7, 9):
        known = dict(zip(steps, computed, strict=True))
        recorded = [known.get(i, torch.zeros(())) for i in range(index + 1)]
        expected = released(recorded, 2, 0.5, 3, 3)[index]
        torch.testing.assert_close(used[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("anchors", [(10, 6), (10, 9), (20, 13, 5)], ids=str)
@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_a_line_goes_on_forward_by_two_sigma_squared(anchors, ahead):
    values = [100 + 7 * s for s in anchors]
    for sigma in (0.3, 0.5, EXACT, 0.9):
        pairs = zip(hermite(sigma)(anchors, anchors[0] + ahead), values, strict=True)
        found = sum(w * v for w, v in pairs)
        assert found == pytest.approx(values[0] + 2 * sigma**2 * 7 * ahead)
        assert found > values[0]


def test_at_half_the_slope_is_half_of_taylors_and_at_root_half_the_same():
    anchors, index = (9, 4), 12
    reused, line = hold(anchors, index), taylor(anchors, index)
    between = [(a + b) / 2 for a, b in zip(reused, line, strict=True)]
    assert hermite(0.5)(anchors, index) == pytest.approx(between)
    assert hermite(EXACT)(anchors, index) == pytest.approx(line)


def test_the_second_order_by_hand():
    """H_2(y) = 4 y^2 - 2: at sigma 0.5 and 2 steps ahead it is 2, times 0.25 / 2 is 0.25."""
    weights = hermite(0.5)((6, 4, 2), 8)  # D_1 = (F6 - F4) / 2, D_2 = (F6 - 2 F4 + F2) / 4
    first, second = 0.5 * 2, 0.25
    expected = [1 + first / 2 + second / 4, -first / 2 - second / 2, second / 4]
    assert weights == pytest.approx(expected) and sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("field", "value"), [("sigma", 0.0), ("sigma", 1.5), ("order", 7), ("carrier", "block")]
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"HiCache.{field} must be"):
        HiCache(**{field: value})
