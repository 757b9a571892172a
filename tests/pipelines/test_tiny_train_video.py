"""Training the video model at other sizes and lengths, from the shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from accel.pipelines import tiny
from accel.pipelines.tiny import clips, train_video

VIDEO = Path(tiny.__file__).parent / "shapes-t2v"


def command(*arguments: str):
    app = typer.Typer()
    app.command()(train_video.main)
    return CliRunner().invoke(app, arguments)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "SHARD", 16)
    monkeypatch.delenv("ACCEL_PAUSE_FILE", raising=False)


def test_other_sizes_and_lengths_train_from_shipped_weights(tmp_path: Path) -> None:
    place = ["--autoencoder", str(VIDEO), "--folder", str(tmp_path)]
    shape = ["--size", "32", "--length", "9", "--scenes", "16", "--pairs", "16"]
    budget = ["--words", "0", "--short", "0", "--samples", "8", "--batch-size", "4", "--lr", "1e-7"]
    result = command(*place, *shape, *budget, "--start", str(VIDEO))
    assert result.exit_code == 0, result.output
    for shard in ("0000", "pairs-0000"):
        held = load_file(tmp_path / "latents" / "32px-9frames" / f"{shard}.safetensors")
        assert held["latents"].shape == (16, 16, 3, 4, 4)
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["samples"] == 8
    shipped = tiny.load("shapes-t2v").transformer.state_dict()
    ours = load_file(tmp_path / "ema-transformer.safetensors")
    weight = "blocks.0.attn1.to_q.weight"
    assert torch.allclose(ours[weight], shipped[weight], atol=1e-4)
    assert not torch.equal(ours[weight], shipped[weight])


@pytest.mark.parametrize("shape", [("--size", "30"), ("--length", "16")])
def test_shapes_the_autoencoder_has_not_are_refused(tmp_path: Path, shape: tuple[str, str]) -> None:
    result = command("--autoencoder", str(VIDEO), "--folder", str(tmp_path), *shape)
    assert result.exit_code == 2
    assert "--size must be a multiple of 8 and --length one more" in result.output.replace("\n", "")
