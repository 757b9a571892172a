"""Peers do what their settings say, on a twin, and leave the pipeline they were copied from alone.

What is computed is counted by hooks on the last block, never by the peer.
"""

import pytest
import torch

from benchmarks import peers
from tests.tiny_pipelines import call, make

STEPS = 10
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def wan():
    return make("wan")


@pytest.fixture(scope="module")
def flux():
    return make("flux_distilled")


def probe(pipe, blocks):
    """A counter of the calls of the last block's queries, which only computing makes."""
    calls = []
    inside = pipe.transformer.get_submodule(blocks)[-1].named_modules()
    part = next(m for name, m in inside if name.endswith("to_q"))
    part.register_forward_hook(lambda *_: calls.append(1))
    return calls


def computed(pipe, peer, name, blocks="blocks", branches=2):
    with peers.enabled(pipe, peer, STEPS) as other:
        calls = probe(other, blocks)
        call(other, name, steps=STEPS)
        first = len(calls)
        call(other, name, steps=STEPS)
    assert len(calls) == 2 * first, "the second run is not as the first"
    return first // branches


def test_a_twin_shares_weights_and_runs_equal(wan):
    other = peers.twin(wan)
    for mine, its in zip(wan.transformer.parameters(), other.transformer.parameters(), strict=True):
        assert mine.data_ptr() == its.data_ptr()
    assert other.transformer is not wan.transformer and other.scheduler is not wan.scheduler
    assert type(other) is not type(wan) and type(other).__name__ == type(wan).__name__
    assert torch.equal(call(wan, "wan", steps=3), call(other, "wan", steps=3))


def test_diffusers_taylorseer_computes_the_steps_it_states(wan, flux):
    for carrier in ("lite", "module"):
        peer = peers.TaylorSeer(interval=4, warmup=2, carrier=carrier)
        assert peer.computed(STEPS) == [0, 1, 3, 7]
        assert computed(wan, peer, "wan") == 4
    peer = peers.TaylorSeer(interval=3, warmup=2)
    where = "single_transformer_blocks"
    assert computed(flux, peer, "flux_distilled", where, 1) == len(peer.computed(STEPS))


def test_first_block_cache_by_threshold(wan):
    assert computed(wan, peers.FirstBlockCache(threshold=0.0), "wan") == STEPS
    assert computed(wan, peers.FirstBlockCache(threshold=100.0), "wan") == 1


def test_magcache_from_its_own_calibration(wan):
    ratios = peers.magnitudes(wan, lambda p: call(p, "wan", steps=STEPS), STEPS)
    assert len(ratios) == STEPS and ratios[0] == 1.0
    keep = peers.MagCache(ratios, threshold=0.0, retention=0.2)
    skip = peers.MagCache(ratios, threshold=1e9, max_skip=3, retention=0.2)
    assert computed(wan, keep, "wan") == STEPS
    assert computed(wan, skip, "wan") == 2 + 2  # skips 3, computes 1, skips 3, computes 1


@pytest.mark.parametrize("order", [None, 1])
def test_cache_dit_follows_its_mask(wan, flux, order):
    pytest.importorskip("cache_dit")
    steps = [0, 1, 2, 5, 9]
    peer = peers.CacheDiT(mask=peers.mask(steps, STEPS), order=order)
    assert computed(wan, peer, "wan") == len(steps)
    assert computed(flux, peer, "flux_distilled", "single_transformer_blocks", 1) == len(steps)


def test_cache_dit_forecasts_where_the_last_block_gives_no_text():
    pytest.importorskip("cache_dit")
    peer = peers.CacheDiT(mask=peers.mask([0, 1, 2, 5, 9], STEPS), order=1)
    assert computed(make("sd3"), peer, "sd3", "transformer_blocks", 1) == 5


def test_cache_dit_by_threshold_and_nothing_left_on_our_class(wan):
    pytest.importorskip("cache_dit")
    before = type(wan).__call__
    assert computed(wan, peers.CacheDiT(threshold=0.0), "wan") == STEPS
    assert computed(wan, peers.CacheDiT(threshold=0.99, warmup=2), "wan") == 2
    assert type(wan).__call__ is before and not hasattr(type(wan), "_is_cached")


def test_deepcache_forgets_the_last_picture():
    pytest.importorskip("DeepCache")
    pipe = make("sd")
    plain = call(pipe, "sd", steps=4)
    with peers.enabled(pipe, peers.DeepCache(interval=2), 4) as other:
        first = call(other, "sd", steps=4, seed=1)
        call(other, "sd", steps=4, seed=2)
        assert torch.equal(call(other, "sd", steps=4, seed=1), first)
    with peers.enabled(pipe, peers.DeepCache(interval=1), 4) as other:
        assert torch.equal(call(other, "sd", steps=4), plain)


def test_settings_are_described_and_checked(wan):
    assert peers.TaylorSeer().describe().startswith("diffusers TaylorSeer(interval=5, order=1")
    assert "mask=1010101010" in peers.CacheDiT(mask=(1, 0) * 5).describe()
    with pytest.raises(ValueError, match="the mask has 3 steps, the run 10"):
        computed(wan, peers.CacheDiT(mask=(1, 0, 0)), "wan")
    with pytest.raises(ValueError, match="no cache for UNet2DConditionModel"):
        peers.FirstBlockCache().install(make("sd"), 4)
