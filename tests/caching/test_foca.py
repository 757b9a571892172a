"""FoCa against its equations, one step after another, and on lines."""

import pytest
import torch

from accel.caching import FoCa
from accel.caching.foca import Stepped
from accel.caching.forecasters import taylor
from accel.caching.policies import Interval, schedule
from accel.caching.state import History
from tests.tiny_pipelines import call, make


def stepped(recorded, computed):
    """Equations 6 to 8 (2508.16211) over single steps, on recorded outputs: what each step uses."""
    used, anchors = [], []
    for step, output in enumerate(recorded):
        if step in computed:
            anchors.append((step, output))
            used.append(output)
        elif len(anchors) == 1:
            used.append(used[-1])
        else:
            (a1, f1), (a0, f0) = anchors[-2:]
            reliable = (f0 - f1) / (a0 - a1)
            # with two anchors no slope was known when the step before a0 was stood in for
            first = step - 1 == a0 and len(anchors) == 2
            before = f0 - reliable if first else used[-2]
            slope = used[-1] - before
            predicted = 4 / 3 * used[-1] - 1 / 3 * before + 2 / 3 * slope
            there = (3 * predicted - 4 * used[-1] + before) / 2
            used.append(used[-1] + (reliable + there) / 2)
    return used


@pytest.mark.parametrize(("interval", "warmup"), [(5, 3), (4, 1), (3, 2), (2, 1), (7, 2)])
def test_forecasts_are_those_of_the_equations(interval, warmup):
    recorded = list(torch.randn(40, 3, 5, dtype=torch.float64).cumsum(0))
    computed = schedule(Interval(interval, warmup), 40)
    expected = stepped(recorded, computed)
    history = Stepped(taylor, 3)
    for step, output in enumerate(recorded):
        if step in computed:
            history.keep(step, output)
        else:
            torch.testing.assert_close(history.forecast(step), expected[step])
    differs = [i for i in range(computed[2] + 1, 40) if i not in computed]
    line = History(taylor, 2)
    line.keep(computed[-2], recorded[computed[-2]])
    line.keep(computed[-1], recorded[computed[-1]])
    assert not torch.allclose(line.forecast(differs[-1]), expected[differs[-1]])


@pytest.mark.parametrize("anchors", [(0, 1, 2, 6, 10), (0, 5, 9), (3, 4), (0, 7, 8, 20)], ids=str)
def test_a_line_is_continued_exactly_whatever_the_gaps(anchors):
    history = Stepped(taylor, 3)
    for anchor in anchors:
        history.keep(anchor, torch.tensor(5.0 - 2.0 * anchor))
    for index in range(anchors[-1] + 1, anchors[-1] + 8):
        assert history.forecast(index).item() == pytest.approx(5 - 2 * index)


def test_a_jump_at_a_computed_step_fades_by_halves():
    """Outputs 0, 1, 2 then 5 at step 6, where 6 would have been the line: by hand."""
    history = Stepped(taylor, 3)
    for step, value in ((0, 0.0), (1, 1.0), (2, 2.0), (6, 5.0)):
        history.keep(step, torch.tensor(value))
    # reliable slope (5 - 2) / 4; the slope entering step 6 is 5 minus the forecast 5 for step 5
    slope, expected, value = 0.0, [], 5.0
    for _ in range(4):
        slope = (0.75 + slope) / 2
        value += slope
        expected.append(value)
    found = [history.forecast(i).item() for i in (7, 8, 9, 10)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_outputs_are_forecast_exactly_and_all_are_counted(dtype):
    history, value = Stepped(taylor, 3), torch.randn(50).to(dtype)
    for step in (0, 1, 2, 7, 12):
        history.keep(step, value)
        assert torch.equal(history.forecast(step + 3), value)
    assert history.bytes() == 3 * value.nbytes


def test_settled_slopes_span_whole_intervals():
    pipe = make("wan")
    pipe.enable_acceleration(FoCa(interval=3, warmup=3, settle=True))
    call(pipe, "wan", steps=9)
    rows = [r for r in pipe.acceleration.report().rows if r.branch == "cond"]
    expected = ["computed"] * 3 + ["reused"] * 2 + ["computed"] + ["forecast"] * 2 + ["computed"]
    assert [r.action for r in rows] == expected
