"""The training loop of the shipped models: resuming, averaging, pausing, bad arguments."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accel.pipelines.tiny.loop import fit, learning_rate


@pytest.fixture(autouse=True)
def _not_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_PAUSE_FILE", raising=False)


def _batches(seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(4, 3, generator=generator)


def _train(folder: Path, samples: int, **options) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(3, 3)

    def loss(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = (model(x) - 2 * x + 0.1 * torch.randn_like(x)).square().mean()
        return error, {"twice": 2 * error}

    settings = {"batch_size": 4, "lr": 0.05, "warmup": 3, "anneal": False, "ema": 0.9} | options
    fit({"line": model}, loss, _batches, folder=folder, samples=samples, **settings)
    return model


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 4 * 45)
    _train(tmp_path / "parts", 4 * 37)
    parts = _train(tmp_path / "parts", 4 * 45)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)
    a, b = (load_file(tmp_path / name / "ema-line.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_learns_and_writes_average_and_log(tmp_path: Path) -> None:
    model = _train(tmp_path, 4 * 300)
    assert torch.allclose(model.weight, 2 * torch.eye(3), atol=0.2)
    average = load_file(tmp_path / "ema-line.safetensors")
    assert set(average) == {"weight", "bias"}
    assert not torch.equal(average["weight"], model.weight)
    assert torch.allclose(average["weight"], 2 * torch.eye(3), atol=0.2)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert row["samples"] == 1200
    assert row["twice"] == pytest.approx(2 * row["loss"], abs=1e-5)


def test_state_between_two_renames_is_found(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 4 * 20)
    _train(tmp_path / "parts", 4 * 10)
    (tmp_path / "parts" / "state").rename(tmp_path / "parts" / "state.old")
    parts = _train(tmp_path / "parts", 4 * 20)
    assert torch.equal(whole.weight, parts.weight)


def test_sigterm_saves_and_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = tmp_path / "pause"
    pause.touch()
    monkeypatch.setenv("ACCEL_PAUSE_FILE", str(pause))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as left:
        _train(tmp_path / "run", 400)
    assert left.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "state").is_dir()
    assert not (tmp_path / "run" / "log.jsonl").exists(), "a paused run takes no step"


def test_pause_ends_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = tmp_path / "pause"
    pause.touch()
    monkeypatch.setenv("ACCEL_PAUSE_FILE", str(pause))
    threading.Timer(1.0, pause.unlink).start()
    began = time.monotonic()
    _train(tmp_path / "run", 40)
    assert time.monotonic() - began > 1.0


def test_learning_rate_is_a_trapezoid() -> None:
    rates = [learning_rate(1.0, step, 10, step / 100, True) for step in (0, 9, 50, 80, 100)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.parametrize("option", ["samples", "batch_size", "lr"])
def test_bad_values_are_named(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=option):
        _train(tmp_path, **{"samples": 4, option: 0})


def test_infinite_loss_is_an_error(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="lower lr"):
        fit(
            {"line": model},
            lambda x: model(x[:, :1]).mean() / 0,
            _batches,
            folder=tmp_path,
            samples=8,
            batch_size=4,
            lr=0.1,
        )


def test_rates_scale_a_module_and_must_name_one(tmp_path: Path) -> None:
    still, moved = (_train(tmp_path / str(r), 8, rates={"line": r}) for r in (0.0, 1.0))
    torch.manual_seed(0)
    assert torch.equal(still.weight, nn.Linear(3, 3).weight)
    assert not torch.equal(moved.weight, still.weight)
    with pytest.raises(ValueError, match=r"\['lime'\].*\['line'\]"):
        _train(tmp_path / "other", 8, rates={"lime": 1.0})
