"""The script for a card, run from end to end in Triton's interpreter at a tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import attention_gpu
from benchmarks.cells import Cells

ROOT = Path(__file__).parents[2]


def test_it_runs_through(tmp_path):
    pytest.importorskip("triton")
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.attention_gpu", "--device", "cpu"]
    result = subprocess.run(
        [*command, "--shape", "3x8x7x1x64", "--minutes", "10", "--out", str(out)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    cells = [c for c in json.loads(out.read_text())["cells"].values()]
    found = {(c["fields"]["part"], c["fields"]["way"], c["fields"]["density"]): c for c in cells}
    for density in attention_gpu.DENSITIES:
        assert found["sparse", "triton", density]["result"]["error"] < 2e-3
        assert found["sparse", "flex", density]["result"]["error"] < 2e-3
    for kernel in ("triton_int8", "triton_int8_fp8"):
        assert found["sparse", kernel, 1.0]["result"]["error"] < 0.1
    assert found["dense", "SDPA flash", 1.0]["result"]["error"] < 2e-3
    assert found["search", "block_sum", 1.0]["result"]["error"] < 1e-3
    assert found["sparse", "triton", 0.05]["result"]["computed"] < 0.8
    built = [c["result"] for c in cells if c["fields"]["part"] == "builder"]
    assert sum("building_ms" in result for result in built) >= 5
    for result in built:
        assert "ms" in result or result["failed"] == "it asks for dense attention here"
    page = out.with_suffix(".md").read_text()
    assert "No number here counts" in page
    assert "SparseVideoGen2" in page


def test_ratios_are_to_the_best_dense_that_is_right(tmp_path):
    cells = Cells(tmp_path / "gpu.json")

    def cell(part, way, density, **result):
        at = {"shape": "s", "part": part, "way": way, "density": density, "device": "cuda"}
        cells.run(lambda: result, **at)

    quartiles = {"ms_low": 1.0, "ms_high": 9.0}
    cell("dense", "wrong", 1.0, ms=1.0, error=0.5, tflops=9.0, **quartiles)
    cell("dense", "best", 1.0, ms=4.0, error=1e-3, tflops=9.0, **quartiles)
    cell("dense", "slow", 1.0, ms=8.0, error=1e-3, tflops=9.0, **quartiles)
    cell("dense", "absent", 1.0, failed="not installed")
    cell("sparse", "triton", 0.25, ms=1.0, error=1e-3, tflops=9.0, computed=0.25, **quartiles)
    cell("builder", "map", 0.0, ms=2.0, building_ms=0.1, computed=0.3, **quartiles)
    assert attention_gpu.best_dense(cells, "s")["way"] == "best"
    shown = {row[0]: row for row in attention_gpu.rows(cells, "s")}
    assert shown["sparse: triton"][4] == "4.00x"
    assert shown["sparse: triton"][1] == "25.0 %"
    assert "5.0 % of what it saves" in shown["builder: map"][-1]
    assert shown["dense: absent"][-1] == "not run: not installed"


def test_a_deadline_that_is_over_begins_nothing(tmp_path):
    cells = Cells(tmp_path / "gpu.json")
    shape = attention_gpu.parse("1x4x4x1x64")
    session = attention_gpu.Session("s", shape, "cpu", cells, deadline=0.0)
    session.run()
    assert not cells.cells


def test_what_is_asked_for_wrongly_is_said(tmp_path):
    with pytest.raises(SystemExit, match="known: Wan"):
        attention_gpu.parse("Wan")
    assert attention_gpu.parse("Wan 1.3B 480p").tokens == 32_760
    assert attention_gpu.parse("HunyuanVideo 720p").tokens == 118_800
