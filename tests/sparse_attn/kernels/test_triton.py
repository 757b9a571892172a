"""Runs the checks of the Triton kernels: in Triton's interpreter, and on a card where one is.

Triton decides when it is imported whether it interprets, so the checks have processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
PLACES = {"interpreter": {"TRITON_INTERPRET": "1", "CHECK_DEVICE": "cpu"}}
if torch.cuda.is_available():
    PLACES["card"] = {"TRITON_INTERPRET": "0", "CHECK_DEVICE": "cuda"}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("checks", ["check_triton.py", "check_triton_int8.py"])
def test_kernels(checks, place):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, str(HERE / checks)],
        env={**os.environ, **PLACES[place], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
