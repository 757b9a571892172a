"""The samplers' benchmark: one grid for all, honest counts of evaluations, tables from cells."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from rich.console import Console

from benchmarks.cells import Cells
from benchmarks.samplers import FLOW, SCALES, fitted, gaussian, noise, sampled
from benchmarks.samplers_report import best, errors, write
from benchmarks.solvers import solvers

SD = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")


@pytest.mark.parametrize("config", [FLOW.config, SD.config], ids=["flow", "variance preserving"])
def test_all_solvers_run_on_the_same_levels(config):
    levels = None
    for solver in solvers():
        scheduler = solver.make(config, {"grid": "sway"})
        scheduler.set_timesteps(6)
        found = list(dict.fromkeys(round(float(s), 4) for s in scheduler.sigmas[:-1]))
        levels = levels or found
        assert found == pytest.approx(levels, abs=1e-3), solver.name


def test_evaluations_are_counted():
    for solver in solvers():
        for evaluations in (7, 8):
            steps = solver.steps(evaluations)
            if steps is None:
                assert solver.name == "Heun" and evaluations == 8
                continue
            scheduler = solver.make(FLOW.config, {"grid": "model"})
            scheduler.set_timesteps(steps)
            assert len(scheduler.timesteps) == evaluations, solver.name


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
                lambda s=solver, g=grid: gaussian(s, g, levels),
                part="errors",
                data="gaussian",
                by=solver.by,
                solver=solver.name,
                grid=grid,
            )
    found, by, orders = errors(cells, "gaussian")
    assert orders["Euler"] == pytest.approx(1, abs=0.1) and by["Euler"] == "diffusers"
    assert list(found["fitted"]["Euler"]) == [5]
    least = best(found)["AB2 corrected"][5]
    assert least == (min(found[g]["AB2 corrected"][5] for g in found), "fitted")
    write(cells, Console(quiet=True))
    text = (tmp_path / "samplers.md").read_text()
    assert "| AB2 corrected | ours |" in text and "ours lowest at every budget" in text
    assert (tmp_path / "samplers-gaussian.png").stat().st_size > 10_000
    assert torch.get_num_threads() == 1
