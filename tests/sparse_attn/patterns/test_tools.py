"""What patterns compute with beside a kernel: plain torch, or Triton where that was asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import accel
from accel.sparse_attn import AdaSpa, SparseAttention, SparseVideoGen2
from accel.sparse_attn.kernels import TOOLS, triton_launch
from accel.sparse_attn.kernels.block_sum import block_sum
from accel.sparse_attn.kernels.merge import merge_lse
from tests.sparse_attn.places import ODD, place
from tests.tiny_pipelines import call, make

CHECKS = Path(__file__).parent / "check_tools.py"


def test_triton_brings_its_own_and_nothing_else_does():
    assert set(TOOLS) == {"triton"}
    ours = TOOLS["triton"]
    assert ours == {"sums": triton_launch.block_sum, "merge": triton_launch.merge_lse}
    assert place(ODD).sums is block_sum and place(ODD).merge is merge_lse


@pytest.mark.parametrize("kernel", ["gather", "auto"])
@pytest.mark.parametrize(
    ("pattern", "tool", "plain"),
    [
        (AdaSpa(0.5, search_at=(0.0,)), "sums", block_sum),
        (SparseVideoGen2(4, 4, mass=0.5, compensate=True), "merge", merge_lse),
    ],
    ids=["sums", "merge"],
)
def test_patterns_use_what_the_kernel_asked_for_brings(monkeypatch, pattern, tool, plain, kernel):
    used = []

    def ours(*args):
        used.append(tool)
        return plain(*args)

    monkeypatch.setitem(TOOLS, "gather", {tool: ours})
    pipe = make("wan")
    method = SparseAttention(pattern, kernel=kernel, shortest=1, dense_until=0.0)
    with accel.accelerated(pipe, method):
        call(pipe, "wan", steps=2)
    assert bool(used) == (kernel == "gather")


def test_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CHECKS)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert "2 passed" in result.stdout
