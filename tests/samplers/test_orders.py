"""Orders of the samplers on uneven grids of Gaussian data, and the weights behind them."""

import math

import numpy as np
import pytest
import torch

from accel.samplers import AdamsBashforth, DPMSolver, PseudoCorrector, UniPC
from accel.samplers.multistep import derivatives, integral
from tests.samplers.gaussian import UNEVEN, order

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


BOUNDED = [
    (lambda: AdamsBashforth(order=3), 2),
    (lambda: AdamsBashforth(order=4), 2),
    (lambda: AdamsBashforth(order=3, correct=True), 2),
    (lambda: AdamsBashforth(order=4, correct=True), 3),
    (lambda: DPMSolver(order=3), 2),
    (lambda: UniPC(), 2),
    (lambda: UniPC(order=3), 2),
]


@pytest.mark.parametrize(("make", "least"), BOUNDED, ids=_id)
def test_high_orders_are_bounded_by_how_they_start(make, least):
    """The first step has but one velocity, and its error stays: second order over a whole run."""
    assert order(make) > least - 0.15


@pytest.mark.parametrize("used", [2, 3, 4])
def test_high_orders_are_reached_once_there_are_as_many_velocities(used):
    """One step from an exact state is off by the power of its length above the order."""
    errors = []
    for h in (0.08, 0.04):
        levels = [0.9 - h * n for n in range(used + 2)]
        scheduler = AdamsBashforth(order=used)
        scheduler.set_timesteps(sigmas=levels)
        for i, t in enumerate(scheduler.timesteps[:used]):
            exact, after = (torch.tensor([[math.sin(3 * g)]]).double() for g in levels[i : i + 2])
            velocity = torch.tensor([[3 * math.cos(3 * levels[i])]]).double()
            x = scheduler.step(velocity, t, exact, return_dict=False)[0]
        errors.append(float((x - after).abs()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(used + 1, abs=0.6)


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
