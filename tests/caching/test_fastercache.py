"""FasterCache: against the released update, its schedules by hand, both layouts of guidance."""

import functools

import pytest
import torch

from accel.caching import FasterCache
from accel.caching.frequency_delta import difference, grid_of, low_frequencies, low_pass
from accel.caching.frequency_delta import uncond_from as guess
from tests.caching.transcribed import Counted
from tests.caching.transcribed_attention import GuidanceCache, bands, fastercache_attention
from tests.contract.runs import counted as flops_of
from tests.tiny_pipelines import call, make

STEPS = 15
GUIDED = [i for i in range(STEPS) if i * 30 <= 11 * STEPS or i % 5 == 0]
ATTENTION_ONLY = FasterCache(guidance_interval=1)
GUIDANCE_ONLY = FasterCache(attention_interval=1)


def transcribed(name, boost=1.15, compounding=False, attention=True, guidance=True):
    """Latents of a plain pipeline whose outputs are overwritten as published."""
    plain = make(name)
    fused = name == "cogvideox"
    counted = Counted(plain, branches=1 if fused else 2)
    cache, conds = GuidanceCache(boost, compounding), []

    def evaluated(step):
        return {"cond", "uncond"} if step in GUIDED or not guidance else {"cond"}

    def branches():
        return ("uncond", "cond") if fused else (("cond", "uncond")[counted.branch],)

    def output(module, args, out):
        if not fused and counted.branch == 0:
            conds[:] = [out[0]]
            return None
        uncond, cond = out[0].chunk(2) if fused else (out[0], conds[0])
        if counted.step in GUIDED:
            cache.computed(uncond, cond)
            return None
        made = cache.guess(cond, counted.step * 30 / STEPS)
        return (torch.cat([made, cond]) if fused else made,)

    blocks = plain.transformer.transformer_blocks if fused else plain.transformer.blocks
    if attention:
        modules = [block.attn1 for block in blocks]
        fastercache_attention(counted, modules, STEPS, evaluated, branches)
    if guidance:
        counted.hooks.append(plain.transformer.register_forward_hook(output))
    return counted.run(plain, name, steps=STEPS)


def alike(latents, expected):
    scale = expected.std()
    torch.testing.assert_close(latents / scale, expected / scale, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compounding", [False, True])
@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_latents_are_those_of_the_released_update(name, compounding):
    expected = transcribed(name, compounding=compounding)
    pipe = make(name)
    pipe.enable_acceleration(FasterCache(compounding=compounding))
    latents = call(pipe, name, steps=STEPS)
    alike(latents, expected)
    other = transcribed(name, compounding=not compounding)
    assert (latents - other).abs().max() > 1e-3 * expected.std()


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_either_half_works_alone(name):
    for method, halves in ((ATTENTION_ONLY, (True, False)), (GUIDANCE_ONLY, (False, True))):
        pipe = make(name)
        pipe.enable_acceleration(method)
        latents = call(pipe, name, steps=STEPS)
        alike(latents, transcribed(name, attention=halves[0], guidance=halves[1]))


def test_schedules_by_hand():
    """Open-Sora's 30 steps as released."""
    method = FasterCache()
    skipped = [i for i in range(30) if not method.computes_attention(i, 30)]
    assert skipped == [8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28]
    full = [i for i in range(30) if method.computes_guidance(i, 30)]
    assert full == [*range(12), 15, 20, 25]
    first, last = method.weights([7, 6], 8, 30), method.weights([27, 25], 28, 30)
    assert first == pytest.approx([1.045, -0.045]) and last == pytest.approx([1.945, -0.945])
    assert method.weights([5], 8, 30) == [1.0]
    boosts = [method.boosts(0, i, 30) for i in (19, 20, 25, 26)]
    assert boosts == [(1.15, 1), (1.15, 1.15), (1.15, 1.15), (1, 1.15)]
    compounding = FasterCache(compounding=True).boosts(15, 19, 30)
    assert compounding == pytest.approx((1.15**4, 1))
    assert FasterCache(compounding=True).boosts(15, 21, 30)[1] == pytest.approx(1.15**2)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 3, 4, 9, 7), (1, 2, 5, 5)])
def test_bands_partition_the_spectrum(shape):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    low = low_pass(value, grid_of(value, {}, ""))
    expected, rest = (
        torch.fft.ifft2(torch.fft.ifftshift(band, dim=(-2, -1))).real for band in bands(value)
    )
    torch.testing.assert_close(low, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value - low, rest, rtol=1e-4, atol=1e-5)


def test_the_disc_by_hand():
    mask = low_frequencies(10, 10, "cpu")
    inside = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (8, 0), (9, 0), (9, 1)]
    assert mask.nonzero().tolist() == [list(p) for p in inside] and mask.shape == (10, 6)


def test_unscaled_on_the_same_input_the_unconditional_output_is_exact():
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 1, 4, 3, 8, 8, generator=generator)
    kept = difference(uncond, cond, grid_of(cond, {}, ""))
    torch.testing.assert_close(guess(cond, kept, 1, 1), uncond, rtol=0, atol=3e-7)
    half = guess(cond.bfloat16(), kept, 1.15, 1.15)
    assert half.dtype == torch.bfloat16


def test_packed_tokens_are_split_on_their_grid():
    frames, height, width = 2, 6, 5
    value = torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(0))
    tokens = value.flatten(2).transpose(1, 2)
    told = {"num_frames": frames, "height": height, "width": width}
    packed = low_pass(tokens, grid_of(tokens, told, ""))
    expected = low_pass(value, grid_of(value, {}, "")).flatten(2).transpose(1, 2)
    torch.testing.assert_close(packed, expected)
    with pytest.raises(ValueError, match=r"\(1, 60, 3\) does not tell its height and width; do"):
        grid_of(tokens, told | {"height": 7}, "do so")


def test_packed_tokens_of_unknown_grid_are_refused_before_the_first_guess_matters():
    pipe = make("flux")
    pipe.enable_acceleration(FasterCache())
    with pytest.raises(ValueError, match="does not tell its height and width; set guidance_int"):
        call(pipe, "flux", steps=STEPS)
    assert len(pipe.acceleration._site.report._calls) == 1
    pipe.enable_acceleration(ATTENTION_ONLY)
    call(pipe, "flux", steps=STEPS)
    assert any(r.action == "forecast" for r in pipe.acceleration.report().rows)


def test_pipelines_that_evaluate_the_unconditional_branch_first_are_refused():
    pipe = make("wan")
    pipe.enable_acceleration(FasterCache())
    clock = pipe.acceleration._site.clock
    clock._branches = {"cond": "uncond", "uncond": "cond"}
    with pytest.raises(ValueError, match="unconditional branch before the conditional one"):
        call(pipe, "wan")
    pipe.enable_acceleration(ATTENTION_ONLY)
    pipe.acceleration._site.clock._branches = {"cond": "uncond", "uncond": "cond"}
    call(pipe, "wan", steps=STEPS)


@pytest.mark.parametrize("name", ["wan", "cogvideox", "ltx", "sd", "sd_controlnet"])
def test_a_guessed_branch_is_not_evaluated(name):
    plain, pipe = make(name), make(name)
    with flops_of(plain) as each:
        call(plain, name, steps=STEPS)
    pipe.enable_acceleration(GUIDANCE_ONLY)
    with flops_of(pipe) as spent:
        call(pipe, name, steps=STEPS)
    left_out = (STEPS - len(GUIDED)) / STEPS / 2
    assert sum(spent) / sum(each) == pytest.approx(1 - left_out, abs=1e-3)
    assert pipe.acceleration.report().computed_fraction == pytest.approx(1 - left_out, abs=1e-3)


@pytest.mark.parametrize("name", ["cogvideox", "ltx", "sd"])
def test_samples_alone_are_no_branches(name):
    """Two samples and no guidance: a batch of two, and nothing to guess."""
    pipe = make(name)
    plain = call(pipe, name, steps=STEPS, guidance=1.0, batch=2)
    pipe.enable_acceleration(GUIDANCE_ONLY)
    with pytest.warns(UserWarning, match="skipped nothing"):
        latents = call(pipe, name, steps=STEPS, guidance=1.0, batch=2)
    assert torch.equal(latents, plain)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_pipelines_that_hide_their_guidance_are_looked_at(monkeypatch, guidance):
    monkeypatch.setattr("accel.branches.guided", lambda pipe: None)
    pipe = make("sd")
    pipe.enable_acceleration(GUIDANCE_ONLY)
    if guidance == 4:
        call(pipe, "sd", steps=STEPS)
        assert any(r.action == "forecast" for r in pipe.acceleration.report().rows)
        return
    with pytest.warns(UserWarning, match="skipped nothing"):
        call(pipe, "sd", steps=STEPS, guidance=1.0, seed=(0, 0), prompt=("a square", "a circle"))


def test_distilled_guidance_has_the_attention_half_only():
    pipe = make("flux_distilled")
    pipe.enable_acceleration(FasterCache())
    call(pipe, "flux_distilled", steps=STEPS)
    rows = pipe.acceleration.report().rows
    skipped = [r.index for r in rows if r.action == "forecast"]
    assert skipped == [i for i in range(STEPS) if i * 30 > 7 * STEPS and i % 2 == 0]
    assert all(0 < r.work < 1 for r in rows if r.action == "forecast")


def test_a_branch_that_returns_is_evaluated():
    def interval(pipe, i, t, kwargs):
        pipe._guidance_scale = 1.0 if 5 <= i < 11 else 4.0
        return kwargs

    pipe = make("wan")
    pipe.enable_acceleration(FasterCache())
    call(pipe, "wan", steps=STEPS, callback=interval)
    uncond = {r.index: r.work for r in pipe.acceleration.report().rows if r.branch == "uncond"}
    assert list(uncond) == [*range(6), 12, 13, 14]
    assert uncond[12] == 1 and uncond[13] == uncond[14] == 0


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_half_precision_stays_half(name):
    pipe = make(name).to(torch.bfloat16)
    seen, kind = [], type(pipe.scheduler)

    class Watched(kind):
        @functools.wraps(kind.step)
        def step(self, model_output, *args, **kwargs):
            seen.append(model_output.dtype)
            return super().step(model_output, *args, **kwargs)

    pipe.scheduler = Watched.from_config(pipe.scheduler.config)
    call(pipe, name, steps=2)
    plain = set(seen)
    pipe.enable_acceleration(FasterCache())
    latents = call(pipe, name, steps=STEPS)
    assert latents.isfinite().all() and set(seen) == plain and len(plain) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention_interval": 0}, "attention_interval must be at least 1"),
        ({"guidance_interval": 0}, "guidance_interval must be at least 1"),
        ({"boost": 0.0}, "boost must be above 0"),
        ({"guidance_start": 11.0}, "guidance_start must be a fraction from 0 to 1"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=rf"FasterCache\.{message}"):
        FasterCache(**fields)
