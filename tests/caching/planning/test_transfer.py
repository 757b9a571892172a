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


def test_nodes_go_to_the_nearest_levels_and_weights_by_the_length_of_segments():
    own = [1 - i / 10 for i in range(10)]
    levels = [1 - i / 20 for i in range(20)]
    weights = ((0.1,), (0.2, 0.3), (0.4, 0.5))
    assert moved((0, 4, 8), weights, own, levels, 10)[0] == (0, 8, 16)
    assert moved((0, 4, 8), weights, own, levels, 10)[1] == tuple(
        pytest.approx(row) for row in weights
    )
    coarse = [1.0, 0.75, 0.5, 0.25]  # nodes at 1, 0.6, 0.2 lie at 1, 0.5, 0.25
    nodes, scaled = moved((0, 4, 8), weights, own, coarse, 10)
    assert nodes == (0, 2, 3)
    assert [row[0] for row in scaled] == pytest.approx([0.1 * 1.25, 0.2 * 0.625, 0.4 * 1.25])


def test_another_schedule_of_as_many_steps_moves_the_nodes_too():
    own, other = flow(50, 3.0)[1], flow(50, 8.0)[1]
    nodes = (0, 10, 25, 40, 49)
    found = moved(nodes, (), own, other, 50)[0]
    assert found != nodes
    for before, after in zip(nodes[1:-1], found[1:-1], strict=True):
        assert abs(own[before] - other[after]) <= np.abs(np.diff(other)).max() / 2 + 1e-9


def test_nodes_stay_apart_and_a_run_of_as_few_steps_computes_all():
    own = flow(50)[1]
    nodes = (0, 1, 2, 3, 4, 47, 48, 49)
    for total in (9, 12, 28):
        found = moved(nodes, (), own, flow(total)[1], 50)[0]
        assert len(found) == 8 and found[0] == 0 and found[-1] < total
        assert (np.diff(found) > 0).all()
    for total in (3, 8):
        assert moved(nodes, ((0.1,),) * 8, own, flow(total)[1], 50) == (tuple(range(total)), ())


def test_weights_of_a_segment_that_became_another_are_left_out():
    own = [1 - i / 10 for i in range(10)]
    levels = [1.0, 0.99, 0.9, 0.05]
    nodes, weights = moved((0, 5), ((0.1,), (0.2, 0.2)), own, levels, 10)
    assert nodes == (0, 2) and weights[0] == (0.0,)  # 0.1 long where it was 0.5
    assert weights[1] == pytest.approx((0.2 * 1.8, 0.2 * 1.8))


@pytest.mark.parametrize("own", [(), (None,) * 10])
def test_without_levels_the_share_of_the_run_counts(own):
    assert moved((0, 4, 8), (), own, [None] * 5, 10)[0] == (0, 2, 4)


def test_levels_of_a_variance_preserving_schedule():
    def levels(steps):
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(steps)
        alphas = scheduler.alphas_cumprod[scheduler.timesteps]
        return ((1 - alphas) / alphas).sqrt().tolist()

    own = levels(50)
    assert moved((0, 10, 20, 49), (), own, levels(100), 50)[0] == pytest.approx(
        (0, 20, 40, 98), abs=1
    )


def test_a_moved_fit_is_the_fit_at_those_levels():
    """On outputs that bend the same way everywhere, the weights fitted at 24 steps serve 48."""

    def off(steps, nodes, weights):
        scheduler, levels = flow(steps)
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
    there, weights = moved(nodes, tuple(fitted), levels, flow(48)[1], 24)
    assert len(there) == 4 and len(weights) == 4
    assert off(48, there, weights) < 0.4 * off(48, there, ())
