"""DeepCache: what runs on a skipped step, and that it is what the published loop computes."""

import pytest
import torch
from diffusers import StableDiffusionAdapterPipeline, StableDiffusionImg2ImgPipeline, T2IAdapter
from diffusers.models.resnet import ResnetBlock2D

from accel.caching import DeepCache
from tests.caching.shallow_unet import entry, skipped_step, up_layers
from tests.tiny_pipelines import call, make
from tests.tiny_pipelines.sd import IMAGE

# ResNets of a skipped step, by branch: branch k runs the producers of k residuals, k + 1 up layers
SD_RESNETS = [1, 3, 5, 6, 8, 10, 11, 13, 15, 16, 18, 20]
SDXL_RESNETS = [1, 3, 5, 6, 8, 10, 11, 13, 15]
BRANCHES = [("sd", b) for b in range(12)] + [("sdxl", b) for b in range(9)]


def resnets_of_each_step(pipe, name, **arguments):
    """How many ResNets ran in each call of the U-Net."""
    counts, hooks = [], []
    for module in pipe.unet.modules():
        if isinstance(module, ResnetBlock2D):
            hooks.append(module.register_forward_hook(lambda *_: counts.append(counts.pop() + 1)))
    hooks.append(pipe.unet.register_forward_pre_hook(lambda *_: counts.append(0)))
    call(pipe, name, **arguments)
    for hook in hooks:
        hook.remove()
    return counts


@pytest.mark.parametrize(("name", "branch"), BRANCHES)
def test_a_skipped_step_runs_the_branch_only(name, branch):
    pipe = make(name)
    pipe.enable_acceleration(DeepCache(interval=3, branch=branch))
    full, few = (22, SD_RESNETS[branch]) if name == "sd" else (17, SDXL_RESNETS[branch])
    assert resnets_of_each_step(pipe, name) == [full, few, few, full, few]


@pytest.mark.parametrize(("name", "last"), [("sd", 11), ("sdxl", 8)])
def test_a_branch_too_deep_is_refused(name, last):
    pipe = make(name)
    with pytest.raises(ValueError, match=f"branch must be from 0 to {last} on this U-Net"):
        pipe.enable_acceleration(DeepCache(branch=last + 1))
    assert not pipe.acceleration


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "heun"])
def test_listed_steps_are_iterations_also_where_timesteps_repeat(scheduler):
    pipe = make("sd", scheduler=scheduler)
    pipe.enable_acceleration(DeepCache(steps=(0, 2, 3)))
    counts = resnets_of_each_step(pipe, "sd")
    assert counts == [22 if i in (0, 2, 3) else 1 for i in range(len(counts))]
    assert len(counts) == {"ddim": 5, "pndm": 6, "heun": 9}[scheduler]


def width(resnet):
    """Channels that a layer hands on; spatio-temporal ones hold two ResNets."""
    return getattr(resnet, "spatial_res_block", resnet).out_channels


def recorded(pipe, name, branch, **arguments):
    """Inputs and output of each U-Net call, and the hidden state that entered the branch."""
    calls, entered = [], {}

    def before(unet, args, kwargs):
        calls.append([args, dict(kwargs), None])

    def after(unet, args, kwargs, output):
        calls[-1][2] = output[0].clone()

    hooks = [
        pipe.unet.register_forward_pre_hook(before, with_kwargs=True),
        pipe.unet.register_forward_hook(after, with_kwargs=True),
    ]
    residual_channels = [pipe.unet.conv_in.out_channels]
    for block in pipe.unet.down_blocks:
        residual_channels += [width(r) for r in block.resnets]
        residual_channels += [d.out_channels for d in block.downsamplers or []]
    first = up_layers(pipe.unet)[entry(pipe.unet, branch)][0]
    cut = residual_channels[branch]
    hook = first.register_forward_pre_hook(
        lambda _, args, kw: entered.update(
            {len(calls) - 1: (args[0] if args else kw["input_tensor"])[:, :-cut].clone()}
        ),
        with_kwargs=True,
    )
    call(pipe, name, **arguments)
    for each in (*hooks, hook):
        each.remove()
    return calls, entered


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        *(("sd", b) for b in (0, 1, 2, 3, 5, 8, 11)),
        *(("sdxl", b) for b in (0, 1, 2, 4, 6, 8)),
        *(("sd_controlnet", b) for b in (0, 1, 3, 10)),
        *(("svd", b) for b in (0, 1, 3)),
        *(("animatediff", b) for b in (0, 1, 4)),
        ("sd_img2img", 1),
        ("sd_controlnet_img2img", 1),
        ("sdxl_controlnet", 2),
    ],
)
@torch.no_grad()
def test_skipped_steps_equal_the_plain_loop(name, branch):
    pipe = make(name)
    pipe.enable_acceleration(DeepCache(interval=3, branch=branch))
    calls, entered = recorded(pipe, name, branch, steps=7)
    pipe.disable_acceleration()
    for i, (args, kwargs, output) in enumerate(calls):
        cached = entered[i - i % 3]
        assert torch.equal(output, skipped_step(pipe.unet, args, kwargs, cached, branch))
        if i % 3 == 0:
            assert torch.equal(output, pipe.unet(*args, **kwargs)[0])


@pytest.mark.parametrize("branch", [0, 1, 4])
def test_a_control_image_changed_midway_is_seen_on_skipped_steps(branch):
    def last_latents(change):
        pipe, calls = make("sd_controlnet"), []
        embedding = pipe.controlnet.controlnet_cond_embedding.conv_out  # zero before training
        torch.nn.init.constant_(embedding.weight, 0.1)
        pipe.enable_acceleration(DeepCache(interval=9, branch=branch))

        def control(net, args, kwargs):
            calls.append(0)
            if change and len(calls) > 2:
                kwargs["controlnet_cond"] = 1 - kwargs["controlnet_cond"]
            return args, kwargs

        pipe.controlnet.register_forward_pre_hook(control, with_kwargs=True)
        return call(pipe, "sd_controlnet")

    assert (last_latents(True) - last_latents(False)).abs().max() > 1e-3


def test_image_to_image_after_a_text_run_and_another_picture():
    """DeepCache 0.1.1 reuses the features of the picture before."""
    text = make("sd")
    image = StableDiffusionImg2ImgPipeline.from_pipe(text)
    image.set_progress_bar_config(disable=True)
    method = DeepCache(interval=3, branch=1)
    text.enable_acceleration(method)
    image.enable_acceleration(method)
    call(text, "sd")
    first = call(image, "sd_img2img")
    assert image.acceleration.report().rows[0].action == "computed"
    other = call(image, "sd_img2img", image=1 - IMAGE)
    fresh = make("sd_img2img")
    fresh.unet, fresh.vae, fresh.text_encoder = text.unet, text.vae, text.text_encoder
    fresh.enable_acceleration(method)
    assert torch.equal(call(fresh, "sd_img2img"), first)
    assert torch.equal(call(fresh, "sd_img2img", image=1 - IMAGE), other)


def adapter_pipeline():
    pipe = make("sd")
    adapter = T2IAdapter(channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=2)
    parts = {**pipe.components, "adapter": adapter.eval()}
    parts.pop("image_encoder")
    result = StableDiffusionAdapterPipeline(**parts, requires_safety_checker=False)
    result.set_progress_bar_config(disable=True)
    return result


@pytest.mark.parametrize("branch", [0, 1, 4, 10])
def test_adapters_and_free_u_write_into_what_is_not_computed(branch):
    pipe = adapter_pipeline()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    plain = call(pipe, "sd", image=IMAGE)
    pipe.enable_acceleration(DeepCache(interval=2, branch=branch))
    latents = call(pipe, "sd", image=IMAGE)
    assert latents.isfinite().all() and not torch.equal(latents, plain)
    assert torch.equal(call(pipe, "sd", image=IMAGE), latents)
    pipe.disable_acceleration()
    assert torch.equal(call(pipe, "sd", image=IMAGE), plain)


def test_one_hidden_state_is_kept():
    pipe = make("sd")
    pipe.enable_acceleration(DeepCache(interval=3, branch=1))
    call(pipe, "sd")
    assert pipe.acceleration.report().bytes_held == 2 * 8 * 16 * 16 * 4  # (2, 8, 16, 16) float32
