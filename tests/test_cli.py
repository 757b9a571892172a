"""The command line: what it prints and writes, and that an interrupt leaves nothing half done."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from accel.cli import app
from accel.registry import families, methods
from tests.tiny_pipelines import PROMPT, TINY, make

KEYS = [
    "model",
    "recipe",
    "methods",
    "seconds_plain",
    "seconds_accelerated",
    "speedup",
    "computed_fraction",
    "psnr",
    "ssim",
    "adherence_plain",
    "adherence_accelerated",
    "files",
]
SMALL = ["--height", "32", "--width", "32"]
SHORT = [*SMALL, "--frames", "5", "--steps", "5"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two saved pipelines."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("wan", "sd"):
        make(name).save_pretrained(folder / name)
    Image.new("RGB", (40, 40), "red").save(folder / "red.png")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def accel(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("model, suffix", [("wan", "mp4"), ("sd", "png")])
def test_compare_as_json(models, model, suffix):
    options = SHORT if model == "wan" else [*SMALL, "--steps", "10"]
    place = ["--model", str(models / model), "--out", "made"]
    result = accel("generate", PROMPT, *place, "--compare", "--json", "--seed", "4", *options)
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert list(values) == KEYS
    assert values["model"] == str(models / model)
    assert values["recipe"] == "balanced"
    assert values["methods"][0]["method"] in methods()
    assert values["speedup"] == values["seconds_plain"] / values["seconds_accelerated"]
    assert 0 < values["computed_fraction"] < 1
    assert 0 < values["psnr"] < 100 and 0 < values["ssim"] <= 1
    assert values["adherence_plain"] is values["adherence_accelerated"] is None
    names = {"accelerated", "plain", "side_by_side", "report_json", "report_txt", "report_png"}
    assert set(values["files"]) == names
    assert sorted(os.listdir("made")) == sorted(
        os.path.basename(p) for p in values["files"].values()
    )
    plain, accelerated, both = (
        iio.imread(values["files"][n]) for n in ("plain", "accelerated", "side_by_side")
    )
    assert values["files"]["side_by_side"] == f"made/side_by_side.{suffix}"
    assert plain.shape == accelerated.shape and not np.array_equal(plain, accelerated)
    assert both.shape[-2] > 2 * 256 and both.shape[-3] > 256
    report = json.loads(Path(values["files"]["report_json"]).read_text())
    assert report["computed_fraction"] == values["computed_fraction"]
    assert "step" in Path(values["files"]["report_txt"]).read_text()
    assert iio.imread(values["files"]["report_png"]).ndim == 3


def test_without_compare_the_plain_keys_are_null(models):
    method = "TaylorSeer:interval=2,warmup=1"
    result = accel(
        "generate", PROMPT, "--model", str(models / "wan"), "--method", method, "--json", *SHORT
    )
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert list(values) == KEYS
    numbers = {"methods", "seconds_accelerated", "computed_fraction", "files", "model"}
    assert {key for key, value in values.items() if value is not None} == numbers
    (described,) = values["methods"]
    assert described["method"] == "TaylorSeer"
    assert (described["interval"], described["warmup"], described["carrier"]) == (2, 1, "output")
    assert values["files"] == {"accelerated": "out/accelerated.mp4"}
    assert os.listdir("out") == ["accelerated.mp4"]


def test_summary_for_people(models):
    result = accel(
        "generate", PROMPT, "--model", str(models / "wan"), "--compare", *SHORT, "--steps", "6"
    )
    assert result.exit_code == 0, result.stderr
    for part in (PROMPT, "balanced", "speed-up", "loop", "PSNR", "SSIM", "computed", "decoding",
                 "uncond", "out/side_by_side.mp4"):  # fmt: skip
        assert part in result.stdout, part
    assert "plain: 100%" in result.stderr and "balanced: 100%" in result.stderr


def test_a_note_when_nothing_was_skipped(models):
    model = str(models / "wan")
    result = accel(
        "generate", PROMPT, "--model", model, "--method", "TaylorSeer:interval=1", *SHORT
    )
    assert result.exit_code == 0
    assert "note: TaylorSeer skipped nothing" in result.stderr


def test_one_seed_makes_one_sample(models):
    made = []
    for folder, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        result = accel("generate", PROMPT, "--model", str(models / "sd"), "--seed", seed,
                       "--out", folder, *SMALL, "--steps", "4")  # fmt: skip
        assert result.exit_code == 0, result.stderr
        made.append(iio.imread(f"{folder}/accelerated.png"))
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_from_a_picture(models):
    result = accel("generate", PROMPT, "--model", str(models / "sd"), "--image",
                   str(models / "red.png"), "--steps", "6", "--compare", "--json")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert iio.imread(json.loads(result.stdout)["files"]["plain"]).shape == (40, 40, 3)


def test_the_model_that_ships_is_the_default(monkeypatch):
    """Its name, its call arguments and its judge; the weights are another test's subject."""
    monkeypatch.setattr("accel.pipelines.tiny.load", lambda name, dtype: make("wan"))
    monkeypatch.setattr("accel.pipelines.tiny.call_defaults", lambda name: TINY["wan"].call)
    result = accel("generate", PROMPT, "--steps", "5", "--json", "--compare")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["model"] == "shapes-t2v"
    assert iio.imread(values["files"]["plain"]).shape == (5, 256, 256, 3)
    assert 0 <= values["adherence_plain"] <= 1 and 0 <= values["adherence_accelerated"] <= 1


@pytest.mark.parametrize("when", ["denoising", "writing"])
def test_an_interrupt_leaves_no_half_written_file(models, monkeypatch, when):
    os.mkdir("out")
    Path("out/accelerated.mp4").write_text("older")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    place = "imageio_ffmpeg._io.subprocess.Popen" if when == "writing" else "accel.generate._call"
    monkeypatch.setattr(place, interrupt)
    result = accel("generate", PROMPT, "--model", str(models / "wan"), "--compare", *SHORT)
    assert result.exit_code == 130
    assert "accel: interrupted" in result.stderr and "Traceback" not in result.stderr
    assert os.listdir("out") == ["accelerated.mp4"]
    assert Path("out/accelerated.mp4").read_text() == "older"


def _heed_interrupts():
    """What a background job of a shell ignores, its children ignore too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_signal_from_a_terminal(models):
    """SIGINT once the first bar shows that the model is denoising."""
    command = [sys.executable, "-m", "accel", "generate", PROMPT, "--model", str(models / "wan"),
               *SHORT, "--steps", "100000"]  # fmt: skip
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,
    ) as process:
        assert process.stderr is not None
        seen = ""
        while "balanced:" not in seen:
            character = process.stderr.read(1)
            assert character, seen
            seen += character
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, seen + stderr
    assert stdout == "" and "accel: interrupted" in stderr and "Traceback" not in stderr
    assert os.listdir("out") == []


def test_help_when_nothing_is_asked():
    result = accel()
    assert result.exit_code == 2 and result.stderr == ""
    assert "generate" in result.stdout


def test_version():
    assert accel("--version").stdout == "accel 0.1.0\n"


def test_commands():
    shown = accel("--help").stdout
    assert all(name in shown for name in ("generate", "methods", "doctor"))


def test_methods_lists_every_one():
    result = accel("methods")
    assert result.exit_code == 0
    for name in methods():
        assert name in result.stdout


@pytest.mark.parametrize("family", sorted(families()))
def test_methods_of_a_family(family):
    shown = accel("methods", "--family", family).stdout
    for name, method in methods().items():
        assert (name in shown) == method().supports(families()[family])


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_method_shows_its_fields(name):
    shown = accel("methods", name.lower()).stdout
    assert shown.startswith(name)
    for field in fields(methods()[name]):
        (row,) = [r for r in shown.splitlines() if r.startswith(f"  {field.name} ")]
        assert len(row.split()) > 3, "a field without a default, a type or a meaning"


def test_brackets_in_types_are_shown():
    assert "tuple[int, ...] | None" in accel("methods", "DeepCache").stdout
