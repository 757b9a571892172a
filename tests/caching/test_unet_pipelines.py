"""U-Net methods in pipelines beside text to image: adapters, ControlNets of SDXL, parts of runs."""

import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionXLControlNetPipeline

from accel.caching import DeepCache, FasterDiffusion, FeatureInheritance
from tests.caching.shallow_unet import skipped_step
from tests.caching.test_deepcache import adapter_pipeline, recorded
from tests.contract.runs import frozen
from tests.tiny_pipelines import call, make
from tests.tiny_pipelines.sd import IMAGE


def close(found, wanted):
    torch.testing.assert_close(found / wanted.std(), wanted / wanted.std(), rtol=1e-4, atol=1e-4)


def controlled(several=False):
    """SDXL with a ControlNet, whose last layers, zero before training, are drawn at random."""
    base, torch_state = make("sdxl"), torch.random.get_rng_state()
    torch.manual_seed(0)
    network = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 8))
    for layer in [*network.controlnet_down_blocks, network.controlnet_mid_block]:
        torch.nn.init.normal_(layer.weight, std=0.1)
    torch.random.set_rng_state(torch_state)
    network.eval()
    parts = {k: v for k, v in base.components.items() if k not in ("image_encoder",)}
    pipe = StableDiffusionXLControlNetPipeline(
        **parts, controlnet=[network, network] if several else network, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("branch", [0, 1, 4])
@torch.no_grad()
def test_deepcache_on_sdxl_with_a_controlnet_equals_the_plain_loop(branch):
    pipe = controlled()
    pipe.enable_acceleration(DeepCache(interval=3, branch=branch))
    calls, entered = recorded(pipe, "sdxl", branch, image=IMAGE, steps=4)
    pipe.disable_acceleration()
    for i, (args, kwargs, output) in enumerate(calls):
        assert kwargs["mid_block_additional_residual"] is not None
        assert torch.equal(
            output, skipped_step(pipe.unet, args, kwargs, entered[i - i % 3], branch)
        )
        if i % 3 == 0:
            assert torch.equal(output, pipe.unet(*args, **kwargs)[0])


def test_several_controlnets_are_called_at_key_steps_only():
    pipe, ran = controlled(several=True), []
    assert isinstance(pipe.controlnet, MultiControlNetModel)
    for network in pipe.controlnet.nets[:1]:
        network.register_forward_hook(lambda *_: ran.append(0))
    latents = []
    for decoder in ("in turn", "batched"):
        pipe.enable_acceleration(FasterDiffusion(steps=(0, 2), decoder=decoder))
        latents.append(
            call(pipe, "sdxl", image=[IMAGE, 1 - IMAGE], controlnet_conditioning_scale=[0.5, 0.5])
        )
    assert pipe.acceleration.report().beside == {"controlnet": (2, 5)}
    assert len(ran) == 2 * 2 * 2  # the network is in the list twice
    close(*latents)


@pytest.mark.parametrize(
    "method",
    [
        FasterDiffusion(interval=2),
        FasterDiffusion(interval=3, decoder="batched"),
        FeatureInheritance("block"),
        FeatureInheritance("block", ("down_blocks.3",)),
        DeepCache(interval=2, branch=1),
    ],
    ids=str,
)
def test_adapters_add_to_what_is_held_as_to_what_is_computed(method):
    """They do so in place, to a block's hidden state, which is its last residual too."""
    pipe = adapter_pipeline()
    outputs = frozen(pipe)
    pipe.enable_acceleration(method)
    call(pipe, "sd", image=IMAGE)
    for output in outputs[1:]:
        close(output, outputs[0])


@pytest.mark.parametrize(
    ("name", "part"), [("sdxl", {"denoising_end": 0.6}), ("sdxl_img2img", {"denoising_start": 0.4})]
)
def test_batched_decoders_know_where_a_part_of_a_run_begins(name, part):
    latents = []
    for decoder in ("in turn", "batched"):
        pipe = make(name)
        pipe.enable_acceleration(FasterDiffusion(interval=3, decoder=decoder, noise=0))
        latents.append(call(pipe, name, steps=10, **part))
        assert [r.action for r in pipe.acceleration.report().rows].count("computed") == 2
    close(*latents)


@pytest.mark.parametrize("decoder", ["in turn", "batched"])
def test_guidance_that_ends_midway_begins_a_new_group(decoder):
    def end(pipe, i, t, kwargs):
        if i == 1:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"][-1:]
        return kwargs

    pipe, sizes = make("sd"), []
    pipe.unet.conv_in.register_forward_hook(lambda m, a, out: sizes.append(len(out)))
    pipe.enable_acceleration(FasterDiffusion(interval=4, decoder=decoder, noise=0))
    latents = call(
        pipe, "sd", callback=end, callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"]
    )
    assert latents.isfinite().all()
    assert sizes == [2, 1]
