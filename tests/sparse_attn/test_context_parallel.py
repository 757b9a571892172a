"""Two processes that share the sequence (Ulysses over gloo) give what one gives alone."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from accel.sparse_attn.attending import unsharded
from accel.token_grid import TokenGrid

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_agree_with_one(tmp_path):
    command = [sys.executable, "-m", "tests.sparse_attn.two_processes"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in running:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in running:
            process.kill()


def test_text_of_every_process_comes_together():
    grid = TokenGrid(1, 2, 4, text_first=4, text_last=2)
    order = unsharded(grid, 2, torch.device("cpu"))
    assert order.tolist() == [0, 1, 7, 8, 2, 3, 4, 5, 9, 10, 11, 12, 6, 13]
