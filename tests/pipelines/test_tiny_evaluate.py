"""Evaluation of a shipped model: by its own size, on captions it never saw."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from accel.pipelines import tiny
from accel.pipelines.tiny import evaluate


class WanPipeline(SimpleNamespace):
    def to(self, device):
        return self

    def set_progress_bar_config(self, disable):
        assert disable


@pytest.mark.parametrize("name", ["shapes-t2v", "shapes-t2v-long"])
def test_models_of_one_class_are_evaluated_at_their_own_size(name, tmp_path, monkeypatch):
    asked = []

    def generate(pipe, prompts, seeds, **options):
        asked.append(options)
        shape = (len(prompts), options["num_frames"], 3, options["height"], options["width"])
        return np.zeros(shape, np.float32)

    monkeypatch.setattr(evaluate, "load", lambda name: WanPipeline())
    monkeypatch.setattr(evaluate, "generate", generate)
    monkeypatch.setattr(evaluate, "autoencoder_psnr", lambda pipe, moving, size, frames: size)
    app = evaluate.typer.Typer()
    app.command()(evaluate.main)
    out = tmp_path / "evaluation.json"
    done = CliRunner().invoke(app, [name, "--n", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    own = tiny.call_defaults(name)
    assert asked == [own | {"num_inference_steps": 50}]
    result = json.loads(out.read_text())
    assert result["autoencoder_psnr"] == own["height"] and result["all_right"] == 0
