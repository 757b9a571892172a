"""Every finding is the outcome of a try, and a broken need changes the exit code."""

import importlib.util

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from accel import doctor
from accel.cli import app
from accel.load import shipped


@pytest.fixture(scope="module")
def findings():
    return doctor.examine()


def test_it_covers_every_group(findings):
    groups = list(dict.fromkeys(f.group for f in findings))
    assert groups == ["version", "device", "attention", "compiler", "media", "model", "extra"]
    assert {f.name for f in findings if f.group == "model"} == set(shipped())


def test_what_every_machine_has_works(findings):
    found = {f.name: f for f in findings}
    for name in ("torch", "diffusers", "cpu", "sdpa math", "ffmpeg"):
        assert found[name].state == "works", found[name]
    assert torch.__version__ in found["torch"].detail


def test_what_is_absent_says_why(findings):
    found = {f.name: f for f in findings}
    if not torch.cuda.is_available():
        assert found["cuda"].state == "absent"
        assert "GPU" in found["cuda"].detail or "CPU" in found["cuda"].detail
        assert "GPU" in found["sdpa cudnn"].detail
    for name, extra in (("gradio", "app"), ("xformers", "xformers"), ("triton", "triton")):
        if importlib.util.find_spec(name) is None:
            assert found[name].state == "absent"
            assert f"pip install 'accel[{extra}]'" in found[name].detail


def test_an_extra_that_breaks_on_import_is_not_fatal():
    def work():
        raise RuntimeError("operator torchvision::nms does not exist\nsecond line")

    found = doctor.attempt("extra", "broken", work, False, "reinstall it")
    assert (found.state, found.detail) == (
        "absent",
        "operator torchvision::nms does not exist; reinstall it",
    )
    assert doctor.attempt("media", "broken", work, True, "").state == "broken"


def test_a_damaged_model_is_broken(monkeypatch):
    def load(name):
        raise ValueError(f"{name}/vae is damaged")

    monkeypatch.setattr("accel.pipelines.tiny.load", load)
    found = list(doctor._models())
    assert [f.state for f in found] == ["broken"] * len(shipped())
    assert found[0].detail == f"{found[0].name}/vae is damaged"


@pytest.mark.parametrize("state, code", [("works", 0), ("absent", 0), ("broken", 1)])
def test_exit_code(monkeypatch, state, code):
    found = [doctor.Finding("media", "ffmpeg", state, "[brackets] stay")]
    monkeypatch.setattr("accel.doctor.examine", lambda: found)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert state in result.stdout and "[brackets] stay" in result.stdout


def test_table_names_a_group_once(findings):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(doctor.table(findings))
    lines = console.export_text().splitlines()
    assert sum(line.startswith("attention") for line in lines) == 1
