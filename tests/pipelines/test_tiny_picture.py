"""The architecture of shapes-t2i and its training commands, from nothing to a pipeline folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer
from typer.testing import CliRunner

from accel.pipelines.tiny import path, picture
from accel.pipelines.tiny.scenes import COLOURS, GROUNDS, SHAPES
from accel.pipelines.tiny.train_picture import app, autoencoder_psnr, pictures_of


@pytest.fixture(autouse=True)
def _not_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_PAUSE_FILE", raising=False)


def test_every_caption_word_is_one_token() -> None:
    tokenizer = picture.build_tokenizer()
    for word in (*COLOURS, *SHAPES, *GROUNDS, "a", "and", "on", "background"):
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("Red CIRCLE")) == 2
    assert "".join(tokenizer.tokenize("zebra")).replace("</w>", "") == "zebra"
    assert tokenizer.unk_token_id not in tokenizer("größe 7!").input_ids[1:-1]


def test_words_have_the_numbers_that_the_shipped_weights_know() -> None:
    """Trained anew the vocabulary is the same, and the shipped tokenizer agrees with it."""
    known = {"a": 265, "and": 306, "on": 295, "red": 299, "circle": 312, "teal": 302}
    shipped = CLIPTokenizer.from_pretrained(path("shapes-t2i") / "tokenizer")
    for tokenizer in (picture.build_tokenizer(), picture.build_tokenizer(), shipped):
        found = tokenizer.get_vocab()
        assert {word: found[f"{word}</w>"] for word in known} == known


def test_standardised_latents_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    autoencoder = picture.build_autoencoder().eval()
    pixels, captions = pictures_of(np.random.default_rng(3), 16)
    assert len(captions) == 16 and pixels.shape == (16, 3, 64, 64)
    with torch.no_grad():
        before = autoencoder.encode(pixels).latent_dist
        out = autoencoder.decode(before.mean).sample
        picture.standardise_latents(autoencoder, pixels)
        after = autoencoder.encode(pixels).latent_dist
        assert torch.allclose(autoencoder.decode(after.mean).sample, out, atol=1e-4)
    assert after.mean.mean((0, 2, 3)) == pytest.approx(torch.zeros(4), abs=1e-4)
    assert after.mean.std((0, 2, 3)) == pytest.approx(torch.ones(4), abs=1e-4)
    ratio, expected = after.std / before.std, 1 / before.mean.std((0, 2, 3))
    assert torch.allclose(ratio, expected[None, :, None, None].expand_as(ratio), rtol=1e-3)


SINGLE = ["--batch", "8", "--no-bf16"]
"""A CPU without AVX-512 takes minutes in bfloat16, which the video's commands are tested in."""


def test_commands_lead_to_a_pipeline_folder(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    for command in (
        ["autoencoder", "--samples", "64", *SINGLE],
        ["denoiser", "--samples", "32", *SINGLE, "--pictures", "64", "--emphasis", "2"],
        ["export", "--to", str(out)],
    ):
        result = CliRunner().invoke(app, [*command, "--folder", str(run)])
        assert result.exit_code == 0, result.output
    assert sum(f.stat().st_size for f in out.rglob("*")) <= 18e6
    pipe = DiffusionPipeline.from_pretrained(out, dtype=torch.float32)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert isinstance(pipe.tokenizer, CLIPTokenizer) and pipe.tokenizer.model_max_length == 32
    pictures = pipe("a red circle on a dark background", num_inference_steps=2, output_type="np")
    assert pictures.images.shape == (1, 64, 64, 3)
    assert autoencoder_psnr(pipe.vae, 8) < 25, "eight steps train no autoencoder"


def test_help_names_the_stages() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(stage in result.output for stage in ("autoencoder", "denoiser", "export"))
