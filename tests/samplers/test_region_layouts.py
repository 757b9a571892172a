"""Regions where tokens have times of their own, and where a picture to be edited is appended."""

import pytest
import torch
from diffusers import FluxKontextPipeline, WanImageToVideoPipeline

from accel.samplers.regions import hold as hold_of
from tests.samplers.region_runs import HALF, PROMPTS, Indices
from tests.tiny_pipelines import call, make
from tests.tiny_pipelines.wan import IMAGE

PARTS = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")
SECOND = ("text_encoder_2", "tokenizer_2")


def built(kind, name, parts, **options):
    pipe = make(name)
    new = kind(**{part: getattr(pipe, part) for part in parts}, **options)
    new.set_progress_bar_config(disable=True)
    return new


def edited():
    """Tokens of the picture stand behind those of the latents."""
    pipe = built(FluxKontextPipeline, "flux", (*PARTS, *SECOND))
    picture = IMAGE[:, :, :32, :32].expand(2, -1, -1, -1)
    return pipe, "flux", {"image": picture, "_auto_resize": False, "max_area": 32 * 32}


def animated():
    """The tokens of the first frame, which is given, are told that they have no noise."""
    pipe = built(WanImageToVideoPipeline, "wan:flow_euler", PARTS, expand_timesteps=True)
    return pipe, "wan_i2v", {}


@pytest.mark.parametrize("build", [edited, animated])
def test_a_step_that_chooses_every_token_in_any_order_is_a_dense_one(build, monkeypatch):
    pipe, name, how = build()
    plain = call(pipe, name, prompt=PROMPTS, **how)
    told, block = (
        [],
        pipe.transformer.get_submodule("blocks.0" if name == "wan_i2v" else "transformer_blocks.0"),
    )
    block.register_forward_pre_hook(
        lambda m, args, kwargs: told.append((*args, *kwargs.values())), with_kwargs=True
    )
    pipe.enable_acceleration(HALF)
    chosen = call(pipe, name, prompt=PROMPTS, **how)
    report = pipe.acceleration.report()
    image = report.regions.tokens
    streams = {values[0].shape[1] for values in told}
    beyond = image if name == "flux" else 0
    assert streams == {image + beyond, image // 2 + beyond}
    assert report.computed_fraction < 0.9 and (chosen - plain).abs().max() > 1e-3
    if name == "wan_i2v":
        times = [values[2] for values in told]
        assert {t.shape[1] for t in times} == {image, image // 2}
        assert all(not torch.equal(t[:, :1], t[:, -1:]) for t in times)
    monkeypatch.setattr(Indices, "order", staticmethod(lambda n: torch.arange(n).flip(0)))
    monkeypatch.setattr(hold_of, "Selection", Indices)
    latents = call(pipe, name, prompt=PROMPTS, **how)
    torch.testing.assert_close(latents, plain, rtol=1e-4, atol=1e-4 * plain.std().item())
    assert any(row.action == "reused" for row in pipe.acceleration.report().rows)
