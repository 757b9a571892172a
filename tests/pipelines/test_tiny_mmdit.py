"""The architecture of shapes-mmdit and its training commands, from nothing to a pipeline folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from diffusers import StableDiffusion3Pipeline
from torch import nn
from typer.testing import CliRunner

from accel.pipelines import tiny
from accel.pipelines.tiny import evaluate, mmdit, picture
from accel.pipelines.tiny.binding import teach
from accel.pipelines.tiny.scenes import caption, sample_scenes
from accel.pipelines.tiny.train_mmdit import (
    Batches,
    app,
    averaged,
    flow_loss,
    load_autoencoder,
    readers,
    untrained,
    words_of,
)

PROMPT = "a red circle on a dark background"


@pytest.fixture(autouse=True)
def _not_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCEL_PAUSE_FILE", raising=False)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusion3Pipeline:
    transformer, encoders = untrained()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    coder = load_autoencoder(tiny.path("shapes-t2i"))
    made = mmdit.assemble(coder, transformer, encoders, picture.build_tokenizer())
    made.set_progress_bar_config(disable=True)
    return made


def test_text_is_what_the_pipeline_passes(pipe: StableDiffusion3Pipeline) -> None:
    states, none, pooled, _ = pipe.encode_prompt(
        PROMPT, None, None, max_sequence_length=32, do_classifier_free_guidance=False
    )
    tokens = pipe.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
    encoders = nn.ModuleList([pipe.text_encoder, pipe.text_encoder_2])
    text, vector = mmdit.embed(encoders, tokens)
    assert text.shape == (1, 64, 128) and none is None
    assert torch.equal(text, states) and torch.equal(vector, pooled)


@pytest.mark.parametrize(("size", "tokens"), [(64, 256), (128, 1024)])
def test_both_sizes_run(pipe: StableDiffusion3Pipeline, size: int, tokens: int) -> None:
    seen = []
    hook = pipe.transformer.transformer_blocks[0].register_forward_hook(
        lambda module, args, kwargs, out: seen.append([o.shape[1] for o in out]), with_kwargs=True
    )
    options = {"height": size, "width": size, "max_sequence_length": 32, "guidance_scale": 4.0}
    out = pipe(PROMPT, num_inference_steps=1, output_type="np", **options)
    hook.remove()
    assert out.images.shape == (1, size, size, 3)
    assert seen == [[64, tokens]]


def test_untrained_it_predicts_nothing_and_every_block_is_the_identity() -> None:
    transformer, _ = untrained()
    block = transformer.transformer_blocks[0]
    hidden, text, emb = torch.randn(2, 9, 128), torch.randn(2, 64, 128), torch.randn(2, 128)
    ended, moved = block(hidden_states=hidden, encoder_hidden_states=text, temb=emb)
    assert torch.equal(moved, hidden) and torch.equal(ended, text)
    text, pooled, time = torch.randn(2, 64, 128), torch.randn(2, 128), torch.tensor([1.0, 999.0])
    out = transformer(torch.randn(2, 4, 16, 16), text, pooled, time).sample
    assert out.abs().max() == 0


def test_the_loss_of_predicting_nothing_is_that_of_velocities() -> None:
    transformer, encoders = untrained()
    torch.manual_seed(1)
    latents = 2 * torch.randn(16, 4, 16, 16)
    tokens = torch.zeros(16, 32, dtype=torch.long)
    batch = latents, tokens, torch.tensor(False)
    value, told = flow_loss(transformer, encoders, readers(), batch)
    assert value.item() == pytest.approx(told["plain"].item(), rel=1e-5)  # there are no words
    assert value.item() == pytest.approx(1 + 2**2, rel=0.05)


def test_encoders_learn_in_seconds_which_words_belong_together() -> None:
    _, encoders = untrained()
    words = picture.build_tokenizer()
    scenes = sample_scenes(np.random.default_rng(3), 256, moving=False, pairs=True)
    tokens = words([caption(s) for s in scenes], padding="max_length", return_tensors="pt")
    seen, unseen = tokens.input_ids.split(192)
    reader = readers()
    before = reader.of_words(words_of(encoders, unseen), unseen)
    teach(encoders, words_of, reader, seen, steps=80, batch_size=32)
    assert reader.of_words(words_of(encoders, unseen), unseen) < 0.2 * before


def test_batches_take_turns_and_the_early_part_ends() -> None:
    tokens = torch.ones(8, 32, dtype=torch.long)
    data = [{"latents": torch.zeros(8, 4, s, s), "tokens": tokens} for s in (32, 16)]
    batches = Batches(data, batch=4, until=1000)
    stream = batches(7)
    drawn = [next(stream) for _ in range(4)]
    assert [d[0].shape[-1] for d in drawn] == [32, 16, 32, 16]
    assert all(d[2] for d in drawn)
    assert not next(batches(8))[2], "8 segments of 32 batches of 4 are past 1000"


def test_commands_lead_to_a_pipeline_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(mmdit.TRANSFORMER, "num_layers", 2)
    run, out = tmp_path / "run", tmp_path / "out"
    few = ["--samples", "8", "--batch", "4", "--pictures", "64", "--pairs", "64", "--no-bf16"]
    for command in (
        ["denoiser", *few, "--words", "2", "--teacher", str(tiny.path("shapes-t2i"))],
        ["larger", *few],
        ["export", "--to", str(out)],
    ):
        result = CliRunner().invoke(app, [*command, "--folder", str(run)])
        assert result.exit_code == 0, result.output
    assert not [f for f in out.rglob("*.json") if "_name_or_path" in f.read_text()]
    monkeypatch.setattr(tiny, "_HOME", out.parent)
    out.rename(tmp_path / "shapes-mmdit")
    pipe = tiny.load("shapes-mmdit")
    assert isinstance(pipe, StableDiffusion3Pipeline) and tiny.name_of(pipe) == "shapes-mmdit"
    assert pipe.tokenizer.model_max_length == 32 and pipe.text_encoder_3 is None
    assert evaluate.autoencoder_psnr(pipe, moving=False, count=4, size=64) > 30
    result = _evaluated(tmp_path / "shapes-mmdit", tmp_path / "result.json")
    assert result["n"] == 2 and result["options"]["height"] == 64
    assert result["options"]["max_sequence_length"] == 32
    again = ["larger", *few, "--start", str(tmp_path / "shapes-mmdit")]
    result = CliRunner().invoke(app, [*again, "--lr", "1e-9", "--folder", str(tmp_path / "again")])
    assert result.exit_code == 0, result.output
    weights = averaged(tmp_path / "again" / "larger")[0].state_dict()
    for name, weight in pipe.transformer.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-5)
    result = CliRunner().invoke(app, ["export", "--folder", str(run), "--to", "x", "--stage", "y"])
    assert result.exit_code == 2 and "--stage must be denoiser or larger" in result.output


def _evaluated(folder: Path, out: Path) -> dict:
    command = typer.Typer()
    command.command()(evaluate.main)
    options = ["--out", str(out), "--n", "2", "--steps", "1", "--size", "64"]
    result = CliRunner().invoke(command, [str(folder), *options])
    assert result.exit_code == 0, result.output
    return json.loads(out.read_text())


def test_whole_it_is_small_enough_to_ship(pipe: StableDiffusion3Pipeline) -> None:
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    numbers = sum(v.numel() for part in parts for v in part.state_dict().values())
    assert 2 * numbers <= 17e6 and len(pipe.transformer.transformer_blocks) == 8
