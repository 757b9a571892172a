"""The benchmark of kernels on one thread: what it times, how it judges, how it goes on."""

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import attention_cpu
from benchmarks.attention_cpu import MORE_PAIRS, PAIRS, band_layout, goal, measure
from benchmarks.cells import Cells


def test_a_band_is_of_the_nearest_blocks():
    layout = band_layout(torch.zeros(1, 8 * 128, 2, 64), 0.375)
    map = layout.dense()
    assert (map.sum(-1) == 3).all() and layout.density() == pytest.approx(0.375)
    assert map[0, 1].long().argmax(-1).tolist() == [0, 0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("map", ["random", "band"])
def test_a_kernel_is_timed_beside_dense_attention(map):
    found = measure("gather", 512, 0.5, map, limit_s=60.0, pairs=2)
    assert found["error"] < 1e-5 and found["density"] == 0.5 and found["pairs"] == 2


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    monkeypatch.setattr(attention_cpu, "kernel", lambda *_: lambda q, k, v: v)
    with pytest.raises(AssertionError, match="gather is off by"):
        measure("gather", 256, 1.0, "band", limit_s=1.0)


def result(low, high, density, **more):
    """Of a kernel that is `low` to `high` times faster than dense attention."""
    ratios = {"ratio": 2 / (low + high), "ratio_low": 1 / high, "ratio_high": 1 / low}
    return {**ratios, "density": density, "first_s": 1.0, "load": 1.0, "pairs": 15, **more}


def test_goals_are_judged_by_the_interval():
    assert goal(result(3.61, 4, 0.25)) == (pytest.approx(3.6), "met")
    assert goal(result(3.5, 3.7, 0.25)) == (pytest.approx(3.6), "not sure")
    assert goal(result(3.5, 3.59, 0.25)) == (pytest.approx(3.6), "missed")
    assert goal(result(0.9, 0.99, 1.0)) == (1.0, "missed")
    assert goal(result(0.5, 0.6, 0.5)) is None


def test_it_times_what_is_missing_and_again_what_is_not_sure(tmp_path, monkeypatch):
    asked = []

    def measured(name, tokens, density, map, limit_s, pairs):
        asked.append((tokens, density, pairs))
        sure = density == 1.0 or pairs == MORE_PAIRS
        return result(*((4.1, 4.2) if sure else (3.5, 3.7)), density, pairs=pairs)

    monkeypatch.setattr(attention_cpu, "measure", measured)
    app, out = typer.Typer(), tmp_path / "cpu.json"
    app.command()(attention_cpu.main)

    def run(*arguments):
        asked.clear()
        chosen = ("--kernels", "gather", "--map", "band", "--density", "1", "--density", "0.25")
        done = CliRunner().invoke(app, [*chosen, *arguments, "--out", str(out)])
        assert done.exit_code == 0, done.output
        return list(asked)

    assert run("--tokens", "256") == [(256, 1.0, PAIRS), (256, 0.25, PAIRS)]
    assert "≥ 3.60x: not sure" in out.with_suffix(".md").read_text()
    both = ("--tokens", "256", "--tokens", "512")
    assert run(*both) == [(512, 1.0, PAIRS), (512, 0.25, PAIRS)]
    assert run("--tokens", "256", "--again") == [(256, 0.25, MORE_PAIRS)]
    assert run("--tokens", "256", "--again") == []
    assert len(Cells(out).cells) == 5
    page = out.with_suffix(".md").read_text()
    assert page.count("not sure |") == 1 and page.count("\n| 256 ") == 2
    assert f"4.10–4.20, {MORE_PAIRS} pairs" in page
