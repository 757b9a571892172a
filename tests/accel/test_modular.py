"""Modular pipelines: the block that loops draws the bar, and a guider calls the denoiser."""

import pytest
import torch
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanBlocks

import accel
from accel.caching import FirstBlockCache, TaylorSeer
from tests.probes import Watch
from tests.tiny_pipelines import PROMPT, make
from tests.tiny_pipelines.text import embeddings


def modular():
    """Wan from blocks, without the text encoder's (which needs ftfy) and the decoder's."""
    plain, blocks = make("wan"), WanBlocks()
    for name in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(name)
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=plain.transformer, scheduler=plain.scheduler)
    pipe.set_progress_bar_config(disable=True)
    texts = embeddings(plain, [PROMPT], ["blue"])
    return pipe, {k: v for k, v in texts.items() if v is not None}


def run(pipe, texts, steps=6):
    return pipe(
        **texts,
        num_inference_steps=steps,
        height=64,
        width=64,
        num_frames=5,
        latents=torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)),
        output="latents",
    )


@pytest.fixture(scope="module")
def plain():
    return run(*modular())


def test_steps_and_guidance_calls_are_told_apart(plain):
    (pipe, texts), watch = modular(), Watch()
    accel.enable(pipe, watch)
    assert torch.equal(run(pipe, texts), plain)
    assert watch.indices == [i for i in range(6) for _ in range(2)]
    assert watch.branches == ["0", "1"] and watch.totals == {6}


@pytest.mark.parametrize(
    "method", [TaylorSeer(interval=2, warmup=1), FirstBlockCache(0.4)], ids=str
)
def test_methods_skip_repeat_and_leave_nothing(plain, method):
    pipe, texts = modular()
    state = accel.enable(pipe, method)
    latents = run(pipe, texts)
    report = state.report()
    assert report.complete and 0 < report.computed_fraction < 1
    assert not torch.equal(latents, plain)
    assert torch.equal(run(pipe, texts), latents)
    accel.disable(pipe)
    assert torch.equal(run(pipe, texts), plain)
    assert state._site.clock.run is None


def test_an_abort_ends_the_run(plain):
    pipe, texts = modular()
    state = accel.enable(pipe, TaylorSeer(interval=2, warmup=1))
    first = run(pipe, texts)
    hook = pipe.transformer.blocks[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(pipe, texts)
    hook.remove()
    assert state._site.clock.run is None
    assert torch.equal(run(pipe, texts), first)
