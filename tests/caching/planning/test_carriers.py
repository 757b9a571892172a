"""Carriers inside the model: sketches keep inner products, weights come nearest and sum to 1."""

from collections import deque

import numpy as np
import pytest
import torch

import accel
from accel.caching.planned import Planned
from accel.caching.planning.carried import carried
from accel.caching.planning.inside import Forecast, fitted_weights
from accel.caching.planning.sketch import sketch
from accel.caching.planning.walk import Walker
from tests.tiny_pipelines import call, make

STEPS = 8
PROMPTS = ("a red circle", "a blue square", "a green triangle")


def test_sketches_keep_inner_products():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 3, 5000, generator=generator) + torch.randn(
        3, 5000, generator=generator
    )
    rows = torch.stack([sketch(value) for value in values])
    true = torch.stack([value.flatten() for value in values])
    assert rows.shape == (6, 256)
    off = (rows @ rows.T - true @ true.T).abs().max()
    assert off < 0.2 * (true @ true.T).diagonal().mean()
    assert sketch(torch.arange(5.0)).abs().tolist() == [0, 1, 2, 3, 4]


def test_weights_are_the_nearest_that_sum_to_one():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 6, 40))
    values[:, 5] = 1.3 * values[:, 4] + 0.2 * values[:, 2] - 0.5 * values[:, 0]
    grams = np.einsum("mie,mje->mij", values, values)
    found = fitted_weights(grams, (0, 2, 4), range(3))
    assert found[0] == found[2] == found[4] == ()
    assert found[5] == pytest.approx([1.3, 0.2, -0.5], abs=1e-2)
    assert found[1] == (1.0,) and sum(found[3]) == pytest.approx(1)
    same = fitted_weights(np.ones((2, 6, 6)), (0, 2, 4), range(2))
    assert np.isfinite(sum(sum(row) for row in same))


def test_a_forecast_is_the_row_of_its_step_or_a_line():
    forecast = Forecast(((), (), (1.2, -0.2), (0.5, 0.4, 0.1)))
    assert forecast([1, 0], 2) == [1.2, -0.2]
    assert forecast([2, 1, 0], 3) == [0.5, 0.4, 0.1]
    assert forecast([1, 0], 3) == [3, -2]
    assert forecast(deque([2, 1, 0]), 9) == [8, -7, 0]


@pytest.mark.parametrize(("name", "carrier"), [("wan", "residual"), ("ltx", "module")])
def test_a_plan_of_a_carrier_is_fitted_and_runs_as_measured(name, carrier):
    pipe = make(name)

    def run(chunk):
        return call(pipe, name, steps=STEPS, prompt=PROMPTS[chunk], seed=chunk)

    with Walker(pipe, run, len(PROMPTS)) as walker:
        walker.record(inside=True)
        gram = walker.inside[carrier]
        assert gram.shape == (3, STEPS, STEPS)
        found = carried(walker, carrier, 6)
        true = walker.state(STEPS)
    assert found is not None and found.share * STEPS <= 6 * 1.05
    plan = Planned(**found.fields(()))
    pipe.enable_acceleration(plan)
    latents = torch.cat([run(chunk).float() for chunk in range(3)])
    report = pipe.acceleration.report()
    assert report.computed_fraction == pytest.approx(found.share, rel=1e-3)
    errors = (latents - true).flatten(1).square().mean(1).sqrt().numpy()
    assert (errors < 3 * found.errors + 1e-3).all() and (errors > 0).all()


def test_a_budget_below_what_skipping_costs_has_no_plan():
    pipe = make("wan")
    with Walker(pipe, lambda c: call(pipe, "wan", steps=STEPS, seed=c), 2) as walker:
        walker.record(inside=True)
        assert carried(walker, "residual", 2) is None


def test_high_effort_measures_the_carriers_too():
    pipe = make("wan")
    call_as = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    made = accel.calibrate(
        pipe, PROMPTS[:2], steps=6, budget=4, effort="high", progress=False, **call_as
    )
    measured = made.measured
    assert {"residual_db", "module_db"} & set(measured) and measured["cost"] <= 5 * 2
    (method,) = made.methods
    found = {k.removesuffix("_db"): v for k, v in measured.items() if k.endswith("_db")}
    found.pop("unfitted", None)  # of the output, as is "output"
    assert found.pop("held_out") == max(found.values())
    best = max(found, key=found.get)
    assert method.carrier == ("output" if best == "guidance" else best)
    assert bool(method.guidance) == (best == "guidance")


def test_what_a_model_lacks_is_refused():
    with pytest.raises(ValueError, match="carrier must be output, residual or module"):
        Planned(nodes=(0,), carrier="blocks")
    with pytest.raises(ValueError, match="as long as `steps`"):
        Planned(nodes=(0, 1), steps=5, carrier="residual", weights=((), ()))
    with pytest.raises(ValueError, match="Planned"):
        make("sd").enable_acceleration(Planned(nodes=(0, 1), steps=5, carrier="residual"))
    with pytest.raises(ValueError, match="for one denoiser, this pipeline has 2"):
        make("wan22").enable_acceleration(Planned(nodes=(0, 1), steps=5, carrier="residual"))
