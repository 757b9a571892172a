"""What stays in a folder: a plain run whose accelerated one failed, and nothing stale."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from accel.cli import app
from accel.generate import generate
from accel.inputs import Request
from accel.load import Model
from tests.tiny_pipelines import PROMPT, TINY, make

SMALL = ("--height", "32", "--width", "32", "--steps", "4")
REPORT = ["report.json", "report.png", "report.txt"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("wan", "sd"):
        make(name).save_pretrained(folder / name)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def accel(model, *arguments):
    size = (*SMALL, "--frames", "5") if model.name == "wan" else SMALL
    return CliRunner().invoke(app, ["generate", PROMPT, "--model", str(model), *size, *arguments])


def failing(error):
    """`accel.generate._call`, which fails in the third run: warm-up, plain, accelerated."""
    from accel.generate import _call as call

    runs = []

    def fail(*arguments):
        runs.append(1)
        if len(runs) == 3:
            raise error
        return call(*arguments)

    return fail


def test_a_refusal_for_bytes_keeps_the_plain_run(models):
    method = ("--method", "TaylorSeer:interval=2,warmup=1", "--max-bytes", "1kB")
    result = accel(models / "wan", "--compare", *method)
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert "accel: the plain run was finished, and is in out/plain.mp4" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("accel: --max-bytes: ")
    assert os.listdir("out") == ["plain.mp4"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()], ids=repr)
def test_whatever_fails_the_plain_run_stays_and_nothing_stale(models, monkeypatch, error):
    sd = models / "sd"
    assert accel(sd, "--compare", "--seed", "1").exit_code == 0
    before = Path("out/plain.png").read_bytes()
    monkeypatch.setattr("accel.generate._call", failing(error))
    result = accel(sd, "--compare", "--seed", "2")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "the plain run was finished, and is in out/plain.png" in result.stderr
    assert os.listdir("out") == ["plain.png"]
    assert Path("out/plain.png").read_bytes() != before


def test_values_that_are_not_numbers_keep_the_plain_run():
    model = Model("sd", make("sd"), TINY["sd"].call)
    runs, kept = [], []
    decode = model.pipe.vae.decode

    def broken(latents, *args, **kwargs):
        runs.append(1)
        return decode(latents if len(runs) < 3 else latents * torch.nan, *args, **kwargs)

    model.pipe.vae.decode = broken
    with pytest.raises(RuntimeError, match="not numbers"):
        generate(model, Request(PROMPT, steps=4), "balanced", compare=True, keep_plain=kept.append)
    (plain,) = kept
    assert np.isfinite(plain.frames).all() and plain.seconds > 0


def test_no_file_of_an_earlier_run_stays_beside_the_new_one(models):
    sd = models / "sd"
    assert accel(sd, "--compare").exit_code == 0
    names = ["accelerated.png", "plain.png", *REPORT, "side_by_side.png"]
    assert sorted(os.listdir("out")) == names
    assert accel(sd).exit_code == 0
    assert os.listdir("out") == ["accelerated.png"]
    assert accel(models / "wan", "--compare").exit_code == 0
    assert sorted(os.listdir("out")) == [name.replace(".png", ".mp4") if
        name not in REPORT else name for name in names]  # fmt: skip


def test_files_of_others_stay(models):
    os.mkdir("out")
    Image.new("RGB", (8, 8)).save("out/plain.png")
    Path("out/report.json").write_text(json.dumps({"quarter": 3}))
    Path("out/report.txt").write_text("profits rose")
    Path("out/side_by_side.mp4").write_text("mine")
    assert accel(models / "sd").exit_code == 0
    left = ["accelerated.png", "plain.png", "report.json", "report.txt", "side_by_side.mp4"]
    assert sorted(os.listdir("out")) == left
