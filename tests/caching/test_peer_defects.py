"""What was seen to go wrong in other projects' caches, on the pipelines where it did."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, StableDiffusionImg2ImgPipeline

from accel.caching import DeepCache, FirstBlockCache, TaylorSeer
from tests.contract.runs import anatomy
from tests.tiny_pipelines import call, make


def computed(pipe):
    return sorted({r.index for r in pipe.acceleration.report().rows if r.work == 1})


@pytest.mark.parametrize("first_off", [0, 1])
def test_two_pipelines_of_one_class_are_disabled_in_any_order(first_off):
    """cache-dit: disabling one breaks the other."""
    method = TaylorSeer(interval=2, warmup=1)
    pair = [make("wan"), make("wan")]
    plain = call(pair[0], "wan")
    for pipe in pair:
        pipe.enable_acceleration(method)
    accelerated = call(pair[0], "wan")
    pair[first_off].disable_acceleration()
    assert torch.equal(call(pair[first_off], "wan"), plain)
    assert torch.equal(call(pair[1 - first_off], "wan"), accelerated)
    assert not torch.equal(plain, accelerated)


@pytest.mark.parametrize("carrier", ["output", "hidden", "module"])
def test_wan_without_guidance_counts_every_step(carrier):
    """cache-dit: parity halves the step counter."""
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=1, carrier=carrier))
    call(pipe, "wan", steps=8, guidance=1.0)
    rows = pipe.acceleration.report().rows
    assert [r.index for r in rows] == list(range(8))
    assert [r.index for r in rows if r.action == "computed"] == [0, 3, 6]


def test_a_list_for_20_steps_does_not_start_again_in_a_run_of_30():
    """cache-dit: a mask restarts at its own length, whatever the run's."""
    pipe = make("sd")
    pipe.enable_acceleration(DeepCache(steps=(0, 1, 5, 10, 15)))
    call(pipe, "sd", steps=30)
    assert computed(pipe) == [0, 1, 5, 10, 15]


@pytest.mark.filterwarnings("ignore:.*skipped nothing")
def test_a_short_run_before_does_not_move_the_steps():
    """Warm-up runs break step counts that live longer than a run."""
    pipe = make("wan")
    pipe.enable_acceleration(TaylorSeer(interval=4, warmup=2))
    for steps in (1, 3, 10, 7):
        call(pipe, "wan", steps=steps)
        assert computed(pipe) == [i for i in (0, 1, 5, 9) if i < steps]


@pytest.mark.parametrize("method", [FirstBlockCache(0.4), TaylorSeer(interval=2, carrier="module")])
def test_diffusers_own_cache_works_on_flux_afterwards(method):
    """cache-dit: a replaced `forward` is left, and diffusers' cache raises a TypeError."""
    pipe, fresh = make("flux"), make("flux")
    pipe.enable_acceleration(method)
    call(pipe, "flux")
    pipe.disable_acceleration()
    for each in (pipe, fresh):
        each.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))
    assert torch.equal(call(pipe, "flux"), call(fresh, "flux"))


def test_every_attention_of_wan_is_forecast():
    """diffusers: `TaylorSeerCacheConfig` hooks no module of Wan, silently."""
    pipe, ran = make("wan"), []
    for block in pipe.transformer.blocks:
        for module in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            module.register_forward_hook(lambda *_: ran.append(0))
    pipe.enable_acceleration(TaylorSeer(interval=9, warmup=1, carrier="module"))
    call(pipe, "wan", guidance=1.0)
    assert len(ran) == 3 * len(pipe.transformer.blocks)  # at the first of five steps only


@pytest.mark.parametrize("name", ["ltx2", "sd"])
def test_models_without_cache_context_are_served(name):
    """diffusers: "No context is set" where the pipeline or the model has no cache context."""
    pipe = make(name)
    pipe.enable_acceleration(TaylorSeer(interval=3, warmup=2))
    call(pipe, name, steps=7)
    assert computed(pipe) == [0, 1, 4]


def test_a_picture_is_not_made_from_the_one_before():
    """DeepCache: image-to-image after an earlier call reuses the previous picture's features."""
    text = make("sd")
    image = StableDiffusionImg2ImgPipeline.from_pipe(text)
    image.set_progress_bar_config(disable=True)
    image.enable_acceleration(DeepCache(interval=3, branch=1))
    expected = call(image, "sd_img2img")
    text.enable_acceleration(DeepCache(interval=9))
    call(text, "sd", steps=2)
    assert torch.equal(call(image, "sd_img2img"), expected)


@pytest.mark.parametrize(
    ("name", "method"), [("sd", DeepCache(interval=2)), ("flux", FirstBlockCache(0.4))]
)
def test_enabled_twice_it_is_restored_at_once(name, method):
    """DeepCache: enabled twice, it never restores."""
    pipe = make(name)
    plain = call(pipe, name)
    before = anatomy(pipe)
    for _ in range(2):
        pipe.enable_acceleration(method)
        call(pipe, name)
    pipe.disable_acceleration()
    assert anatomy(pipe) == before
    assert torch.equal(call(pipe, name), plain)


def test_forecasts_need_no_more_memory_in_a_longer_run():
    """Wan at `module` runs out of memory: `output` keeps as little as two outputs a branch."""
    pipe, held = make("wan"), {}
    for carrier in ("output", "hidden", "module"):
        for steps in (6, 12):
            pipe.enable_acceleration(TaylorSeer(interval=2, carrier=carrier))
            call(pipe, "wan", steps=steps)
            held[carrier, steps] = pipe.acceleration.report().bytes_held
    assert all(held[c, 6] == held[c, 12] for c in ("output", "hidden", "module"))
    assert held["output", 6] < held["hidden", 6] < held["module", 6] / 10
