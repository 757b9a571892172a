"""FlowTurbo's pseudo-corrector: its evaluations, its published loop, its slot for a refiner."""

import itertools

import pytest
import torch

from accel.samplers import PseudoCorrector
from tests.samplers.gaussian import UNEVEN, predict, run, start


def test_pseudo_corrector_evaluations():
    def count(**settings):
        scheduler = PseudoCorrector(**settings)
        scheduler.refiner = lambda sample, velocity, t: torch.zeros_like(velocity)
        scheduler.set_timesteps(10)
        run(scheduler, start())
        return len(scheduler.timesteps)

    assert count(evaluate_last=True) == 2 + 9  # 2 N_H + N_P
    assert count(heun_steps=4, evaluate_last=True) == 2 * 4 + 6
    assert count() == 10
    assert count(heun_steps=2) == 11
    assert count(heun_steps=2, refiner_steps=3) == 9


def test_pseudo_corrector_transcribed():
    """Against the published loop: Heun once, then slopes handed on."""
    grid, x = [*UNEVEN, 0.0], start()

    def velocity(state, g):
        return predict("flow_prediction", state, 1 - g, g)

    expected, slope = x, None
    for now, after in itertools.pairwise(grid):
        first = velocity(expected, now) if slope is None else slope
        slope = velocity(expected + (after - now) * first, after)
        expected = expected + (after - now) / 2 * (first + slope)
    scheduler = PseudoCorrector(evaluate_last=True)
    scheduler.set_timesteps(sigmas=UNEVEN)
    torch.testing.assert_close(run(scheduler, x), expected, rtol=1e-5, atol=1e-5)


def test_a_refiner_of_nothing_keeps_the_velocity():
    scheduler = PseudoCorrector(refiner_steps=3)
    with pytest.raises(ValueError, match="need a refiner"):
        scheduler.set_timesteps(8)
    seen = []

    def refiner(sample, velocity, t):
        seen.append(t)
        return torch.zeros_like(velocity)

    scheduler.refiner = refiner
    scheduler.set_timesteps(8)
    assert len(scheduler.timesteps) == 6
    x = torch.randn(2, 3)
    for t in scheduler.timesteps:
        before, x = x, scheduler.step(torch.full_like(x, 0.5), t, x, return_dict=False)[0]
    torch.testing.assert_close(x - before, torch.full_like(x, -0.5 * float(scheduler.sigmas[-2])))
    assert len(seen) == 6
