"""A plan moved to other noise levels keeps its places, and its weights as far as they carry."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from accel.caching.planning.response import response
from accel.caching.planning.rule import extrapolated
from accel.caching.planning.transfer import moved


def flow(steps, shift=3.0):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.sigmas[:-1].tolist()


def test_the_same_levels_change_nothing():
    own = flow(50)[1]
    weights = ((0.1,), (0.2, 0.3), (0.4, 0.5))
    nearly = [s * (1 + 1e-5) for s in own]
    assert moved((0, 7, 30), weights, own, nearly, 50) == ((0, 7, 30), weights)


def test_second_order_schedulers_have_every_level_twice_and_move_by_number():
    own = [1.0, *(1 - i / 5 for i in range(1, 5) for _ in (0, 1))]
    assert moved((0, 2, 3), ((0.1,),) * 3, own, own, 9) == ((0, 2, 3), ((0.1,),) * 3)
    assert moved((0, 2, 3), (), own, [None] * 18, 9)[0] == (0, 2, 3, 4, 5, 6)


def test_the_share_of_computed_steps_stays_and_nodes_lie_as_densely():
    own, nodes = [1 - i / 12 for i in range(12)], (0, 2, 8)
    more, fewer = ([1 - i / total for i in range(total)] for total in (20, 8))
    assert moved(nodes, (), own, more, 12)[0] == (0, 2, 3, 8, 13)  # at 0, 1, 2, 5, 8 twelfths
    assert moved(nodes, (), own, fewer, 12)[0] == (0, 5)


def test_as_many_steps_of_another_schedule_move_every_node_to_its_level():
    own, other = flow(50, 3.0)[1], flow(50, 8.0)[1]
    nodes = (0, 10, 25, 40, 49)
    found = moved(nodes, (), own, other, 50)[0]
    assert found != nodes and len(found) == len(nodes)
    for before, after in zip(nodes[1:-1], found[1:-1], strict=True):
        assert abs(own[before] - other[after]) <= np.abs(np.diff(other)).max() / 2 + 1e-9


def test_weights_keep_their_share_of_the_segment_and_less_of_a_shorter_one():
    own = [1 - i / 12 for i in range(12)]
    levels = [1 - 1.1 * i / 12 for i in range(10)] + [0.09, 0.08]
    nodes, weights = moved((0, 4, 8), ((0.1,), (0.2, 0.3), (0.4, 0.5)), own, levels, 12)
    assert nodes == (0, 4, 7)  # at 1, 0.633, 0.358 where they were at 1, 0.667, 0.333
    lengths = [1 - levels[4], levels[4] - levels[7], levels[7]]
    made = ((0.1,), (0.2, 0.3), (0.4, 0.5))
    for row, expected, length in zip(weights, made, lengths, strict=True):
        ratio = 3 * length  # each was a third
        scale = ratio * min(ratio, 1.0)  # of a shorter one, a smaller share
        assert row[: len(expected)] == pytest.approx([scale * w for w in expected])
        assert not any(row[len(expected) :])


def test_nodes_stay_apart_and_a_run_of_few_steps_computes_all():
    own = flow(50)[1]
    nodes = (0, 1, 2, 3, 4, *range(20, 40), 47, 48, 49)
    for total in (9, 12, 28, 49, 90):
        found = moved(nodes, (), own, flow(total)[1], 50)[0]
        assert len(found) == -(-28 * total // 50) and found[0] == 0 and found[-1] < total
        assert (np.diff(found) > 0).all()
    for total in (1, 3):
        weights = ((0.1,),) * 49
        assert moved(range(49), weights, own, flow(total)[1], 50) == (tuple(range(total)), ())


def test_weights_of_a_segment_that_became_another_are_left_out():
    own = [1 - i / 10 for i in range(10)]
    levels = [1 - i / 100 for i in range(9)] + [0.05]
    nodes, weights = moved((0, 5), ((0.1,), (0.2, 0.2)), own, levels, 10)
    assert nodes == (0, 8)
    assert weights[0] == (0.0,)  # 0.08 long where it was 0.5
    assert weights[1] == pytest.approx((0.2 * 1.84, 0.2 * 1.84))


def test_weights_that_want_outputs_from_before_the_run_are_left_out():
    own = [1 - i / 24 for i in range(24)]
    weights = ((0.0,), (0.1, 0.1), (0.1, 0.1, 0.1), *[(0.1, 0.1, 0.1)] * 3)
    nodes, found = moved((0, 4, 8, 12, 16, 20), weights, own, [1 - i / 12 for i in range(12)], 24)
    assert len(nodes) == 3
    assert found[1] == (0.0, 0.0)  # it lies between the third and the fourth, which weigh three
    assert found[2] == pytest.approx(
        [0.1 * 6 * (1 - nodes[2] / 12)] * 3
    )  # shares of the last one, which was a sixth


@pytest.mark.parametrize("own", [(), (None,) * 10])
def test_without_levels_the_share_of_the_run_counts(own):
    assert moved((0, 4, 8), (), own, [None] * 10, 10)[0] == (0, 4, 8)
    assert moved((0, 4, 8), (), own, [None] * 5, 10)[0] == (0, 4)


def test_levels_of_a_variance_preserving_schedule():
    def levels(steps):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(steps)
        alphas = scheduler.alphas_cumprod[scheduler.timesteps]
        return ((1 - alphas) / alphas).sqrt().tolist()

    own = levels(50)
    found = moved((0, 10, 20, 49), (), own, levels(100), 50)[0]
    assert len(found) == 8 and found[-1] == pytest.approx(98, abs=1)
    there = levels(100)
    wide = [s for s in there if own[10] < s < own[0]]
    assert sum(own[10] < there[i] < own[0] for i in found) >= 1 and len(wide) > 10


def test_a_moved_fit_is_the_fit_at_those_levels():
    """On outputs that bend the same way everywhere, weights serve another schedule."""

    def off(steps, nodes, weights, shift=3.0):
        scheduler, levels = flow(steps, shift)
        found = response(scheduler, steps)
        outputs = np.array(levels) ** 2
        rule = extrapolated(found, nodes)
        for j, row in enumerate(weights):
            change = np.zeros(len(nodes))
            change[j - np.arange(len(row))] = row
            rule = rule.adjusted(j, change)
        state = 0.0
        for i in range(steps):
            state = rule.decay[i] * state + rule.weights[i] @ outputs[list(nodes)]
        return abs(state - found.outputs[-1] @ outputs)

    nodes, fitted = (0, 4, 12, 20), []
    scheduler, levels = flow(24)
    found, outputs = response(scheduler, 24), np.array(levels) ** 2
    for j in range(4):
        rule = extrapolated(found, nodes)
        end = nodes[j + 1] if j < 3 else 24
        true = (found.outputs[end] - found.outputs[nodes[j]]) @ outputs
        missing = true - rule.segment(j)[1] @ outputs[list(nodes)]
        fitted.append((missing / outputs[nodes[j]],))
    assert off(24, nodes, fitted) < 1e-6
    other = flow(24, 3.3)[1]
    there, weights = moved(nodes, tuple(fitted), levels, other, 24)
    assert len(there) == 4 and len(weights) == 4
    assert off(24, there, weights, 3.3) < 0.4 * off(24, there, (), 3.3)


def test_a_fit_of_the_last_segment_alone_stays_in_the_last():
    own, weights = [1 - i / 12 for i in range(12)], ((), (), (), (), (0.1, 0.2, 0.3))
    _, found = moved((0, 2, 4, 8, 10), weights, own, [1 - i / 8 for i in range(8)], 12)
    assert len(found) == 4 and any(found[-1]) and not any(any(row) for row in found[:-1])


def test_a_run_of_more_steps_takes_nodes_alone():
    own, weights = [1 - i / 12 for i in range(12)], ((0.1,), (0.2, 0.3), (0.1, 0.2, 0.3))
    nodes, found = moved((0, 4, 8), weights, own, [1 - i / 20 for i in range(20)], 12)
    assert len(nodes) == 5 and found == ()
