"""The attention tile of Efficient-vDiT: masks by hand, its density, and the layer-wise search."""

import pytest
import torch

from accel.sparse_attn.patterns.attention_tile import AttentionTile, search_references
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, place, random_qkv, route, token_mask


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


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="2 latent frames"):
        AttentionTile(1, at=(3,)).map(TokenGrid(2, 4, 4), torch.device("cpu"))
    with pytest.raises(ValueError, match="`reference` different frames"):
        AttentionTile(2, at=(0, 0))
