"""Loading the shipped models, and saying what is wrong with their files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from accel.pipelines import tiny

VIDEO = Path(tiny.__file__).parent / "shapes-t2v"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(VIDEO, tmp_path / "shapes-t2v")
    monkeypatch.setattr(tiny, "_HOME", tmp_path)
    return tmp_path / "shapes-t2v"


def test_loads_whole_and_in_single_precision() -> None:
    pipe = tiny.load("shapes-t2v")
    assert type(pipe).__name__ == "WanPipeline"
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert len(pipe.transformer.blocks) >= 12


def test_runs_with_its_call_defaults() -> None:
    pipe = tiny.load("shapes-t2v")
    pipe.set_progress_bar_config(disable=True)
    prompt = "a red circle moving left on a dark background"
    options = tiny.call_defaults("shapes-t2v")
    frames = pipe(prompt, num_inference_steps=2, output_type="np", **options).frames
    assert frames.shape == (1, 17, 64, 64, 3)


def test_call_defaults_are_a_copy() -> None:
    tiny.call_defaults("shapes-t2v")["height"] = 1
    assert tiny.call_defaults("shapes-t2v")["height"] == 64


def test_weights_are_half_precision_and_small() -> None:
    from safetensors.torch import load_file

    assert {w.dtype for w in load_file(VIDEO / WEIGHTS).values()} == {torch.float16}
    assert sum(f.stat().st_size for f in VIDEO.rglob("*") if f.is_file()) < 18e6


@pytest.mark.parametrize("name", ["shapes", "shapes-t2v/", ""])
def test_unknown_name_lists_the_known(name: str) -> None:
    for ask in (tiny.path, tiny.load, tiny.call_defaults):
        with pytest.raises(ValueError, match="shipped models are shapes-t2v, shapes-t2i"):
            ask(name)


def test_missing_file_is_named_with_a_remedy(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{WEIGHTS} is missing; get it back with `git"):
        tiny.load("shapes-t2v")


def test_damaged_file_is_named_with_a_remedy(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is damaged.*get it back"):
        tiny.load("shapes-t2v")


@pytest.mark.parametrize("text", [None, "", "[1]"])
def test_missing_or_damaged_manifest_is_named(copy: Path, text: str | None) -> None:
    manifest = copy / tiny.MANIFEST
    manifest.unlink() if text is None else manifest.write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=rf"{tiny.MANIFEST} is .*get it"):
        tiny.path("shapes-t2v")


def test_missing_folder_is_named(copy: Path) -> None:
    shutil.rmtree(copy)
    with pytest.raises(FileNotFoundError, match=r"shapes-t2v/sha256.json is missing"):
        tiny.path("shapes-t2v")
