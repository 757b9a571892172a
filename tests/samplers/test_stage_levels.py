"""Stages of resolution move noise levels: solvers and methods beside them heed these."""

import math

import pytest
import torch

from accel.samplers import IntervalGuidance, RegionUpsampling, ResolutionStages, Sampler
from tests.tiny_pipelines import call, make

SWITCH = ResolutionStages(scales=(0.5, 1.0), until=(0.4,), shift=1.5)


@pytest.mark.parametrize(
    ("name", "method", "steps"), [("wan", SWITCH, 5), ("flux", RegionUpsampling(), 9)]
)
def test_first_order_adams_bashforth_in_stages_is_euler_in_stages(name, method, steps):
    pipe, results = make(name, "flow_euler"), []
    for before in ((), (Sampler("AdamsBashforth", {"order": 1}),)):
        pipe.enable_acceleration(*before, method)
        results.append(call(pipe, name, steps=steps))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


def test_other_methods_see_the_levels_of_the_stages():
    """0.86, of the shifted stage, lies above the interval; the level before, 0.67, within."""
    pipe = make("wan", "flow_euler")
    pipe.enable_acceleration(ResolutionStages((0.5, 1.0), shift=3.0), IntervalGuidance())
    told = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(float(kwargs["timestep"][0]) / 1000),
        with_kwargs=True,
    )
    call(pipe, "wan", steps=6)
    computed = [r for r in pipe.acceleration.report().rows if r.action == "computed"]
    assert [r.sigma for r in computed] == pytest.approx(told, abs=2e-3)
    ratios = [t / (1 - t) if t < 1 else math.inf for t in told]
    assert all(0.28 < ratios[i] <= 5.42 for i in range(len(told)) if told.count(told[i]) == 2)
