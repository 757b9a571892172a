"""The attention tile of Efficient-vDiT: masks by hand, its density, and the layer-wise search."""

from dataclasses import replace

import pytest
import torch

from accel.caching import TaylorSeer
from accel.sparse_attn import SparseAttention
from accel.sparse_attn.patterns.attention_tile import AttentionTile, search_references
from accel.sparse_attn.search import output_loss
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, place, random_qkv, route, token_mask
from tests.tiny_pipelines import call, make


@pytest.mark.parametrize("reference", [1, 2, 4])
def test_matches_the_definition_and_its_density(reference):
    q, k, v = random_qkv(ODD, batch=1, heads=2)
    found = route(AttentionTile(reference, block=64), ODD, q, k, v)
    chosen = {1: {0}, 2: {0, 2}, 4: {0, 1, 2, 3}}[reference]
    for i in range(0, ODD.tokens, 7):
        for j in range(0, ODD.tokens, 5):
            frames = [(t - 11) // 63 if 11 <= t < 11 + 315 else None for t in (i, j)]
            wanted = None in frames or frames[0] == frames[1] or bool(chosen & set(frames))
            assert token_mask(found)[0, 1, i, j] == wanted, (i, j)
    silent = TokenGrid(8, 7, 9)
    q, k, v = random_qkv(silent, batch=1, heads=1)
    density = route(AttentionTile(reference, block=64), silent, q, k, v).layout.density()
    a, f = reference, 8
    assert density.item() == pytest.approx((a * f + (f - a) * (a + 1)) / f**2)


def test_all_frames_is_dense():
    q, k, v = random_qkv(ODD)
    assert AttentionTile(5).route(q, k, v, place(ODD)) is None
    tile = AttentionTile(4, at=(0, 1, 2, 3), block=64)
    # only frame 4 is no reference, and it sees itself
    assert torch.allclose(attend(route(tile, ODD, q, k, v), q, k, v), dense(q, k, v), atol=1e-6)


def test_a_number_per_layer():
    q, k, v = random_qkv(ODD)
    tile = AttentionTile((1, 5, 2, 5), block=64)
    assert tile.route(q, k, v, place(ODD, layer=1)) is None
    sparse, wide = (route(tile, ODD, q, k, v, layer=n).layout.density() for n in (0, 2))
    assert sparse < wide
    with pytest.raises(ValueError, match="has 2 numbers for 4 layers"):
        AttentionTile((1, 2)).route(q, k, v, place(ODD))


def test_the_search_takes_the_sparsest_that_is_good_enough():
    cost = {0: (0.0, 0.0, 0.0, 0.0), 1: (0.3, 0.06, 0.0, 0.2), 2: (0.2, 0.01, 0.0, 0.09)}
    asked = []

    def loss(counts):
        asked.append(tuple(counts))
        return 2.0 * (1 + sum(cost[c % 8][layer] for layer, c in enumerate(counts)))

    assert search_references(loss, 4, 8, 0.1, (1, 2)) == (8, 1, 1, 2)
    assert search_references(loss, 4, 8, 0.05, (1, 2)) == (8, 2, 1, 8)
    assert (8, 2, 8, 8) in asked
    with pytest.raises(ValueError, match=r"above 0, got 0\.0"):
        search_references(lambda counts: 0.0, 4, 8, 0.1)


@pytest.mark.filterwarnings("ignore:.*skipped nothing")
def test_the_search_on_a_pipeline_weighs_its_own_output():
    pipe, sizes = make("wan"), {"num_frames": 13, "steps": 2}  # 4 latent frames
    pipe.enable_acceleration(TaylorSeer(interval=2))
    method = SparseAttention(AttentionTile(block=64), shortest=1, dense_until=0.0)
    loss = output_loss(pipe, lambda: call(pipe, "wan", **sizes), method)
    assert loss([4] * 4) == 1.0
    dense = call(make("wan"), "wan", **sizes).double()
    found = []
    for layer in range(4):
        counts = tuple(1 if n == layer else 4 for n in range(4))
        alone = make("wan")
        alone.enable_acceleration(replace(method, pattern=AttentionTile(counts, block=64)))
        out = call(alone, "wan", **sizes).double()
        found.append(1 + float((out - dense).square().sum() / dense.square().sum()))
    assert loss([1, 4, 4, 4]) == pytest.approx(found[0], abs=1e-12)
    bar = sum(sorted(found)[1:3]) / 2 - 1  # of the four, two layers bear one reference
    chosen = search_references(loss, 4, 4, bar, candidates=(1,))
    assert chosen == tuple(1 if f - 1 <= bar else 4 for f in found)
    assert sorted(chosen) == [1, 1, 4, 4]
    assert isinstance(pipe.acceleration.plan.methods[0], TaylorSeer)  # and is back


def test_a_loss_wants_outputs_that_repeat_and_its_own_pattern():
    pipe = make("wan")
    with pytest.raises(ValueError, match="the same twice"):
        output_loss(pipe, lambda: torch.rand(3))
    with pytest.raises(ValueError, match="searched for AttentionTile, got SlidingTile"):
        output_loss(pipe, lambda: torch.ones(3), SparseAttention())


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="2 latent frames"):
        AttentionTile(1, at=(3,)).map(TokenGrid(2, 4, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match="`reference` different frames"):
        AttentionTile(2, at=(0, 0))
