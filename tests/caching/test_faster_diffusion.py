"""Faster Diffusion: encoder propagation against a plain loop over a U-Net's parts, prior noise."""

import functools

import pytest
import torch

from accel.caching import FasterDiffusion
from accel.caching.policies import schedule
from tests.caching.shallow_unet import embedding, up_layers
from tests.tiny_pipelines import call, make

PROMPTS = ["a red circle", "a large blue square on a light background"]
KEYS = (0, 2, 3, 6)


def encoded(unet, args, kwargs):
    """Residuals and the mid block's output, from the sample and the time of a key step."""
    emb, text = embedding(unet, args, kwargs), {}
    residuals = [unet.conv_in(args[0])]
    hidden = residuals[0]
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            text = {"encoder_hidden_states": kwargs["encoder_hidden_states"]}
            hidden, new = block(hidden, emb, **text)
        else:
            hidden, new = block(hidden, emb)
        residuals += new
    return residuals, unet.mid_block(hidden, emb, **text)


def decoded(unet, args, kwargs, residuals, hidden):
    """The output for the time of `args`, from features that may be of another step."""
    emb, text = embedding(unet, args, kwargs), kwargs["encoder_hidden_states"]
    if kwargs.get("mid_block_additional_residual") is not None:
        control = kwargs["down_block_additional_residuals"]
        residuals = [r + c for r, c in zip(residuals, control, strict=True)]
        hidden = hidden + kwargs["mid_block_additional_residual"]
    residuals = list(residuals)
    for resnet, attention, upsampler in up_layers(unet):
        hidden = resnet(torch.cat([hidden, residuals.pop()], 1), emb)
        if attention is not None:
            hidden = attention(hidden, text, return_dict=False)[0]
        hidden = hidden if upsampler is None else upsampler(hidden)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def recorded(pipe, name, **arguments):
    """Arguments and output of each U-Net call."""
    calls = []

    def after(unet, args, kwargs, output):
        calls.append((args, dict(kwargs), output[0].clone()))

    hook = pipe.unet.register_forward_hook(after, with_kwargs=True)
    call(pipe, name, **arguments)
    hook.remove()
    return calls


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("sd", {}),
        ("sd", {"prompt": PROMPTS, "scheduler": "pndm"}),
        ("sd", {"scheduler": "heun", "guidance": 1.0}),
        ("sd", {"scheduler": "euler", "width": 64}),
        ("sd_img2img", {}),
        ("sd_controlnet", {}),
        ("sdxl", {"prompt": PROMPTS}),
        ("sdxl_img2img", {"scheduler": "dpm++"}),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
@torch.no_grad()
def test_decoders_in_turn_equal_the_plain_loop(name, how):
    pipe = make(name, how.get("scheduler"))
    pipe.enable_acceleration(FasterDiffusion(steps=KEYS))
    how = {k: v for k, v in how.items() if k != "scheduler"}
    calls = recorded(pipe, name, steps=8, **how)
    pipe.disable_acceleration()
    assert len(calls) >= 5
    for i, (args, kwargs, output) in enumerate(calls):
        if i in KEYS:
            features = encoded(pipe.unet, args, kwargs)
            assert torch.equal(output, pipe.unet(*args, **kwargs)[0])
        assert torch.equal(output, decoded(pipe.unet, args, kwargs, *features))


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("sd", "pndm"),
        ("sd", "heun"),
        ("sd_img2img", "euler"),
        ("sd_img2img", "heun"),
        ("sd_controlnet", None),
        ("sdxl", None),
    ],
)
def test_decoders_in_a_batch_give_the_same(name, scheduler):
    latents = []
    for decoder in ("in turn", "batched"):
        pipe = make(name, scheduler)
        pipe.enable_acceleration(FasterDiffusion(steps=KEYS, decoder=decoder))
        latents.append(call(pipe, name, steps=8, prompt=PROMPTS))
    scale = latents[0].std()
    torch.testing.assert_close(latents[1] / scale, latents[0] / scale, rtol=1e-4, atol=1e-4)
    assert not torch.equal(latents[0], call(make(name, scheduler), name, steps=8, prompt=PROMPTS))


def test_a_batch_is_one_call_with_a_time_for_each_step():
    pipe, batches, times = make("sd"), [], []
    unet = pipe.unet
    unet.conv_in.register_forward_hook(lambda m, a, out: batches.append(("in", len(out))))
    unet.conv_out.register_forward_hook(lambda m, a, out: batches.append(("out", len(out))))
    unet.time_proj.register_forward_pre_hook(lambda m, args: times.append(args[0].tolist()))
    pipe.enable_acceleration(FasterDiffusion(steps=(0, 1), decoder="batched"))
    call(pipe, "sd")
    assert batches == [("in", 2), ("out", 2), ("in", 2), ("out", 8)]
    assert times == [[801, 801], [601, 601, 401, 401, 201, 201, 1, 1]]


@pytest.mark.parametrize("decoder", ["in turn", "batched"])
def test_controlnet_is_called_at_key_steps_only(decoder):
    pipe, ran = make("sd_controlnet"), []
    pipe.controlnet.register_forward_hook(lambda *_: ran.append(0))
    pipe.enable_acceleration(FasterDiffusion(steps=(0, 2), decoder=decoder))
    call(pipe, "sd_controlnet")
    assert len(ran) == 2
    report = pipe.acceleration.report()
    assert report.beside == {"controlnet": (2, 5)}
    assert "controlnet: 2 of 5 calls computed" in report.summary()
    assert "ControlNet at key steps" in pipe.acceleration.explain()
    pipe.disable_acceleration()
    call(pipe, "sd_controlnet")
    assert len(ran) == 7


PUBLISHED = {
    50: [0, 1, 2, 3, 5, 10, 15, 25, 35],
    100: [0, 2, 4, 6, 10, 20, 30, 50, 70],
    20: [0, 1, 2, 4, 6, 10, 14],
    10: [0, 1, 2, 3, 5, 7],
}


@pytest.mark.parametrize("total", PUBLISHED)
def test_published_key_steps_and_the_same_fractions_of_other_runs(total):
    assert schedule(FasterDiffusion().policy, total) == PUBLISHED[total]


def test_key_steps_by_interval():
    assert schedule(FasterDiffusion(interval=4).policy, 10) == [0, 4, 8]


def watched(name, scheduler, noise, steps):
    """Timesteps, and the samples as the pipeline hands them to the scheduler and as it gets them.

    Every step is a key step, so nothing but the noise is added.
    """
    pipe = make(name, scheduler)
    kind, given, handed, times = type(pipe.scheduler), [], [], []

    class Watching(kind):
        @functools.wraps(kind.step)
        def step(self, model_output, timestep, sample, **kwargs):
            given.append(sample.clone())
            times.append(float(timestep))
            result = super().step(model_output, timestep, sample, **kwargs)
            handed.append(result[0].clone())
            return result

    pipe.scheduler = Watching.from_config(pipe.scheduler.config)
    pipe.enable_acceleration(FasterDiffusion(interval=1, noise=noise))
    with pytest.warns(UserWarning, match="skipped nothing"):
        call(pipe, name, steps=steps)
    return pipe.scheduler, times, given, [given[0], *handed]


@pytest.mark.parametrize(
    ("scheduler", "later"), [("ddim", 4), ("dpm++", 3), ("euler", 4), ("euler_ancestral", 4)]
)
def test_prior_noise_is_added_in_the_later_half(scheduler, later):
    scheduler, times, given, before = watched("sd", scheduler, 0.003, 8)
    assert sum(t < 500 for t in times) == later
    for t, x, z in zip(times, given, before[:-1], strict=True):
        # in the scale of a variance-preserving model, where z_T has variance 1
        alpha = scheduler.alphas_cumprod[round(t)]
        scale = 1.0 if scheduler.init_noise_sigma == 1 else alpha**0.5
        expected = scale * z + (t < 500) * 0.003 * before[0] / scheduler.init_noise_sigma
        torch.testing.assert_close(scale * x, expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(x, z) == (t >= 500)


@pytest.mark.parametrize(
    ("name", "scheduler"), [("sd", "heun"), ("sd", "unipc"), ("sd_img2img", "ddim")]
)
def test_prior_noise_is_left_out_where_it_makes_no_sense(name, scheduler):
    _, _, given, before = watched(name, scheduler, 0.3, 6)
    pairs = zip(given, before[:-1], strict=True)
    assert all(torch.equal(x, z) for x, z in pairs)


def test_twenty_five_additions_in_fifty_ddim_steps():
    _, _, given, before = watched("sd", "ddim", 0.003, 50)
    assert sum(not torch.equal(x, z) for x, z in zip(given, before[:-1], strict=True)) == 25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"interval": 0}, "interval must be at least 1, or None"),
        ({"steps": (1, 2)}, "steps must be rising step numbers that begin with 0"),
        ({"decoder": "x"}, "decoder must be in turn or batched, got 'x'"),
        ({"noise": -1.0}, "noise must be from 0 to below 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FasterDiffusion(**fields)
