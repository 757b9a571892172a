"""Which few-step sampler is picked, by what, and that the pipeline then runs with it."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from diffusers import FlowMatchLCMScheduler, LCMScheduler, SCMScheduler, TCDScheduler
from safetensors.torch import save_file

from accel.samplers.few_step import few_step
from tests.tiny_pipelines import TINY, make


def lora(folder, name, **metadata):
    path = folder / name
    save_file({"weight": torch.zeros(1)}, path, metadata=metadata)
    return path


def runs(name, pipe, found):
    arguments = {k: v for k, v in TINY[name].call.items() if k not in found.call}
    generator = torch.Generator().manual_seed(0)
    return pipe(
        "a red circle", output_type="latent", generator=generator, **arguments, **found.call
    )[0]


@pytest.mark.parametrize(
    ("name", "metadata", "wanted"),
    [
        ("sd", {"ss_output_name": "LCM-LoRA, rank 64"}, LCMScheduler),
        ("sd", {"lora_adapter_metadata": json.dumps({"distillation": "TCD"})}, TCDScheduler),
        ("wan", {"modelspec.title": "Wan latent consistency"}, FlowMatchLCMScheduler),
    ],
)
def test_metadata_tells_and_the_pipeline_runs(tmp_path, name, metadata, wanted):
    pipe = make(name)
    own = pipe.scheduler.config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = few_step(pipe, lora(tmp_path, "a.safetensors", **metadata))
    assert type(pipe.scheduler) is wanted and found.scheduler is pipe.scheduler
    assert "a.safetensors" in found.evidence and found.call["num_inference_steps"] == 4
    if name == "sd":
        assert pipe.scheduler.config.beta_start == own.beta_start
        assert pipe.scheduler.config.prediction_type == own.prediction_type
    assert runs(name, pipe, found).isfinite().all()
    assert len(pipe.scheduler.timesteps) == 4


def test_the_shift_of_a_flow_is_kept():
    pipe = make("wan")
    shift = pipe.scheduler.config.get("flow_shift", pipe.scheduler.config.get("shift"))
    assert few_step(pipe, kind="LCM").scheduler.config.shift == shift


def test_parts_tell():
    pipe = make("sd")
    pipe.scheduler = own = TCDScheduler.from_config(pipe.scheduler.config)
    found = few_step(pipe)
    assert found.kind == "TCD" and pipe.scheduler is own
    assert found.call == {"num_inference_steps": 4, "guidance_scale": 0.0, "eta": 0.3}
    pipe = make("sd")
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    found = few_step(pipe)
    assert found.kind == "LCM" and "time_cond_proj_dim" in found.evidence
    assert found.call == {"num_inference_steps": 4, "guidance_scale": 8.0}


@pytest.mark.parametrize(
    ("checkpoint", "kind"),
    [
        ("latent-consistency/lcm-lora-sdxl", "LCM"),
        ("h1t/TCD-SDXL-LoRA", "TCD"),
        ("ByteDance/Hyper-SD", "TCD"),
        ("tianweiy/DMD2", "LCM"),
    ],
)
def test_a_name_alone_tells_with_a_warning(checkpoint, kind):
    with pytest.warns(UserWarning, match=rf"{kind} was picked by the name of the checkpoint"):
        assert few_step(make("sd"), checkpoint).kind == kind


class Sprint:
    """Called as SanaSprintPipeline is."""

    name_or_path = "Sana_Sprint_1.6B_1024px"

    def __init__(self):
        self.scheduler = SCMScheduler()

    def __call__(self, prompt, num_inference_steps, guidance_scale, intermediate_timesteps):
        return prompt


def test_trigonometric_models():
    found = few_step(Sprint())
    assert found.kind == "SCM"
    assert found.call == {
        "num_inference_steps": 2,
        "guidance_scale": 4.5,
        "intermediate_timesteps": 1.3,
    }


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sd", {}, "nothing tells that StableDiffusionPipeline holds few-step weights.*give kind"),
        ("sd", {"checkpoint": "a/painting-lora"}, "'a/painting-lora'"),
        ("sd", {"checkpoint": "SDXL-Lightning"}, "another sampler: use EulerDiscreteScheduler"),
        ("sd", {"checkpoint": "lcm-or-tcd"}, "tells of LCM, .* of TCD; give kind"),
        ("sd", {"kind": "DDIM"}, "kind must be one of LCM, TCD, SCM, FlowMatchLCM"),
        ("sd", {"kind": "SCM"}, "as by SanaSprintPipeline"),
        ("sd", {"kind": "FlowMatchLCM"}, "is for flow models"),
        ("wan", {"kind": "TCD"}, "whose few-step sampler is FlowMatchLCM"),
    ],
)
def test_refusals_say_why_and_change_nothing(name, options, words):
    pipe = make(name)
    before = pipe.scheduler
    with pytest.raises(ValueError, match=words):
        few_step(pipe, **options)
    assert pipe.scheduler is before


def test_what_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / "b.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no safetensors file"):
        few_step(make("sd"), path)
