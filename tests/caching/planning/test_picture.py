"""The picture of a plan shows what is in it, and says what is not."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from accel.caching.planning.picture import draw

NODES, STEPS = (0, 2, 5), 8
FLOW = tuple(1 - i / STEPS for i in range(STEPS))
MEASURED = {
    "predicted": [0.01, 0.02, 0.03],
    "error": [0.005, 0.02, 0.04],
    "rule": [[0.25], [-0.1, 0.4], [0.0, -0.5, 1.0]],
    "held_out_db": 33.3,
}


def drawn(sigmas=FLOW, weights=(), measured=MEASURED):
    figure = Figure()
    draw(figure, NODES, STEPS, sigmas, weights, measured)
    return figure.axes[:3]  # computed steps, errors, weights


def texts(axes):
    return [t.get_text() for t in axes.texts] + [axes.get_title(loc) for loc in ("left", "right")]


def test_steps_lie_at_their_noise_levels_and_are_numbered():
    top, below, _ = drawn()
    (points,) = top.lines
    np.testing.assert_allclose(points.get_xdata(), [1.0, 0.75, 0.375])
    assert {"0", "2", "5"} <= set(texts(top)) and "computed: 3 of 8 steps" in texts(top)
    assert top.get_xlim()[0] > 1 > 0 > top.get_xlim()[1]  # noise on the left
    assert top.get_xlabel() == "noise level σ" and below.get_xscale() == "linear"


def test_errors_are_those_at_the_end_of_each_segment():
    _, below, _ = drawn()
    predicted, found = below.lines
    np.testing.assert_allclose(found.get_xdata(), [0.75, 0.375, 0.0])
    np.testing.assert_allclose(predicted.get_ydata(), [0.01, 0.03, 0.06])
    np.testing.assert_allclose(found.get_ydata(), [0.005, 0.02, 0.04])
    assert below.get_yscale() == "log" and "held-out samples: 33.3 dB" in texts(below)
    _, below, _ = drawn(measured={**MEASURED, "held_out": 0})
    assert "its own samples: 33.3 dB" in texts(below)


def test_weights_are_shares_of_their_segment():
    (image,) = drawn()[2].images
    table = np.asarray(image.get_array().filled(np.nan))
    np.testing.assert_allclose(table[1, :2], [-1 / 3, 4 / 3])
    np.testing.assert_allclose(table[2, 1:], [-1.0, 2.0])
    assert np.isnan(table[0, 1:]).all() and np.isnan(table[2, 0])


def test_without_the_whole_rule_the_fit_is_shown():
    plot = drawn(weights=((0.1,), (0.2, -0.3), ()), measured={})[2]
    table = np.asarray(plot.images[0].get_array().filled(np.nan))
    assert table[0, 0] == 0.1 and table[1, 1] == 0.2 and table[1, 0] == -0.3
    assert "what the fit adds" in texts(plot)


def test_weights_of_every_step_are_shown_where_the_carrier_is_inside():
    weights = [() if i in NODES else (1.5, -0.5) for i in range(STEPS)]
    plot = drawn(weights=weights, measured={"held_out_db": 30.0})[2]
    table = np.asarray(plot.images[0].get_array().filled(np.nan))
    assert table.shape == (STEPS, 2) and "weights of what is kept, at every step" in texts(plot)
    assert np.isnan(table[2]).all() and table[3].tolist() == [1.5, -0.5]


def test_a_plan_without_measurements_says_so():
    top, below, weights = drawn(sigmas=(), measured={})
    assert top.get_xlabel() == "step" and top.get_xlim()[0] < 0 < STEPS < top.get_xlim()[1]
    assert "not kept in this plan" in texts(below) and "not fitted" in texts(weights)


@pytest.mark.parametrize("end", [0.03, 0.3])
def test_levels_without_an_upper_bound_are_logarithmic(end):
    top, below, _ = drawn(sigmas=tuple(np.geomspace(14.0, end, STEPS)))
    assert top.get_xscale() == below.get_xscale() == "log"
    assert top.get_xlim()[0] > 14 and 0 < top.get_xlim()[1] < end
