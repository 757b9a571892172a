"""The samplers' benchmark: one grid for all, honest counts of evaluations, tables from cells."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from rich.console import Console

from accel.samplers import SOLVERS, SRDS, ParaDiGMS
from benchmarks import fidelity, samplers
from benchmarks.cells import Cells
from benchmarks.gaussian import (
    FLOW,
    SCALES,
    errors_of,
    fitted,
    noise,
    off,
    picked,
    sampled,
    side_by_side,
)
from benchmarks.samplers_report import best, errors, write
from benchmarks.solvers import DOUBLED, OURS, solvers

SD = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False)


@pytest.mark.parametrize("config", [FLOW.config, SD.config], ids=["flow", "variance preserving"])
def test_all_solvers_run_on_the_same_levels(config):
    levels, seen = None, set()
    for solver in solvers(config is FLOW.config):
        seen.add(solver.name)
        scheduler = solver.make(config, {"grid": "sway"})
        scheduler.set_timesteps(6)
        if solver.own or solver.name == "Restart":  # their own levels, and those in between
            continue
        found = list(dict.fromkeys(round(float(s), 4) for s in scheduler.sigmas[:-1]))
        levels = levels or found
        assert found == pytest.approx(levels, abs=1e-3), solver.name
    assert {kind for kind, _ in OURS.values()} == set(SOLVERS)
    assert {"DPM++ 2S", "LMS", "DDIM", "PNDM", "KDPM2"} & seen == (
        {"DPM++ 2S"} if config is FLOW.config else {"DPM++ 2S", "LMS", "DDIM", "PNDM", "KDPM2"}
    )


def test_evaluations_are_counted():
    for flow, config in ((True, FLOW.config), (False, SD.config)):
        for solver in solvers(flow):
            for evaluations in (8, 9):
                steps = solver.steps(evaluations)
                if steps is None:
                    assert solver.name in DOUBLED and evaluations == 8
                    continue
                scheduler = solver.make(config, {"grid": "model"})
                scheduler.set_timesteps(steps)
                assert len(scheduler.timesteps) == evaluations, solver.name


def test_every_solver_for_a_model_that_preserves_variance_takes_a_run():
    """To the end, on the levels it was given: twice the steps come nearer to the data."""
    scales = torch.logspace(-1, 0.5, 8).double()
    begun = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).double()
    for solver in solvers(False):
        errors = []
        for evaluations in (15, 41):
            scheduler = solver.make(SD.config, {"grid": "model"})
            scheduler.set_timesteps(solver.steps(evaluations))
            x = begun * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                inner = scheduler.scale_model_input(x, t)
                abar = np.interp(float(t), range(1000), SD.alphas_cumprod.double().numpy())
                signal, level = abar**0.5, (1 - abar) ** 0.5
                by = signal * level * (1 - scales**2) / (signal**2 * scales**2 + level**2)
                x = scheduler.step(by * inner, t, x, return_dict=False)[0]
            errors.append(float((x - begun * scales).norm() / (begun * scales).norm()))
        if not solver.random:
            assert errors[1] < min(errors[0], 0.2), (solver.name, errors)


def test_of_random_samplers_the_spread_is_judged():
    """By the answer to each noise; of one that draws none it is what the plain error is."""
    rows = {s.name: s for s in solvers()}
    found = {}
    for name in ("ERSDE 3", "Restart", "DPM++ 2M SDE"):
        few, many = (off(rows[name], n, {"grid": "uniform"}, noise(0)) for n in (14, 120))
        assert many < 0.1 and many < few
        found[name] = few
    x = torch.ones(1, len(SCALES)).double()
    plain = off(rows["DPMSolver 2M"], 20, {"grid": "uniform"}, x)
    unmoved = dataclasses.replace(rows["DPMSolver 2M"], name="ERSDE 3")
    assert off(unmoved, 20, {"grid": "uniform"}, x) == pytest.approx(plain, rel=1e-3)


def test_each_solver_may_pick_a_grid_and_steps_lie_side_by_side():
    (solver,) = [s for s in solvers() if s.name == "UniPC 2 (diffusers)"]
    on = picked(solver, 5)
    others = [off(solver, 5, {"grid": g}, noise(0)) for g in ("model", "uniform")]
    assert off(solver, 5, on, noise(0)) < min(others)
    exact = side_by_side(ParaDiGMS(8, 0.0), 16)
    assert exact["error"] == pytest.approx(exact["error_plain"], rel=1e-3)
    near = side_by_side(SRDS(0.5), 16)
    assert near["rounds"] < 16 < near["evaluations"] and near["away"] < 0.2


def test_many_steps_of_flow_euler_come_near_the_exact_solution():
    x = noise(0, 4)
    plain = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert (sampled(plain, 400, x) - x * SCALES).norm() < 0.02 * (x * SCALES).norm()


def test_fitted_levels_and_tables(tmp_path):
    levels = {5: fitted(5)}
    assert len(levels[5]) == 5 and levels[5][0] == 1.0
    cells = Cells(tmp_path / "samplers.json")
    rows = {s.name: s for s in solvers() if s.name in ("AB2 corrected", "Euler")}
    for solver in rows.values():
        for grid in ("uniform", "fitted"):
            cells.run(
                lambda s=solver, g=grid: errors_of(s, g, levels),
                part="errors",
                data="gaussian",
                by=solver.by,
                solver=solver.name,
                grid=grid,
            )
    fields = {"part": "errors", "data": "gaussian", "by": "diffusers", "solver": "Euler"}
    more = {"errors": {"3": 0.9, "70": 0.01}, "order": None}
    cells.run(lambda: more, **fields, grid="uniform", budgets=(3, 70))
    found, by, orders = errors(cells, "gaussian")
    of_euler = list(found["uniform"]["Euler"])
    assert of_euler == [3, *range(4, 21), 25, 30, 40, 50, 70]  # two cells of one row
    assert orders["Euler"] == pytest.approx(1, abs=0.1) and by["Euler"] == "diffusers"
    assert list(found["fitted"]["Euler"]) == [5]
    least = best(found)["AB2 corrected"][5]
    assert least == (min(found[g]["AB2 corrected"][5] for g in found), "fitted")
    write(cells, Console(quiet=True))
    text = (tmp_path / "samplers.md").read_text()
    assert "| AB2 corrected | ours |" in text and "ours lowest at every budget" in text
    assert (tmp_path / "samplers-gaussian.png").stat().st_size > 10_000
    assert torch.get_num_threads() == 1


def test_levels_are_fitted_to_a_shipped_model_once(tmp_path, monkeypatch):
    monkeypatch.setattr(samplers, "FITTED_ON", 1)
    monkeypatch.setattr(samplers, "FEW", (4,))
    shipped = fidelity.load("shapes-t2i", None)
    small = {**shipped.options, "height": 32, "width": 32}
    model = fidelity.Model(shipped.name, shipped.pipe, shipped.folder, small)
    cells = Cells(tmp_path / "samplers.json")
    (levels,) = samplers.fitted_to(cells, model).values()
    assert len(levels) == 4 and levels == sorted(levels, reverse=True) and levels[-1] > 0
    monkeypatch.setattr(samplers, "levels_of", None)
    assert samplers.fitted_to(cells, model) == {4: levels}
    measure = samplers.of_model(model, 1, tmp_path)
    np.save(tmp_path / f"shapes-t2i-{model.checkpoint[:12]}-1-latents.npy", np.ones((1, 4, 8, 8)))
    rows = {s.name: s for s in solvers(False)}
    assert measure(rows["AB2"], "fitted", (3, 4), {4: levels})["errors"].keys() == {"4"}
