"""SpargeAttn's selection against a loop over blocks and tokens."""

import math

import pytest
import torch

from accel.sparse_attn.patterns.sparge import SpargeAttn
from accel.sparse_attn.reorder import hilbert
from accel.token_grid import TokenGrid
from tests.sparse_attn.patterns.pooled import cover, dot, mean, ragged, softmax
from tests.sparse_attn.places import ODD, attend, dense, random_qkv, route

GRID = TokenGrid(4, 9, 10, 7, 3)


def alike(q, k, grid, order):
    """Some stretches of tokens made alike, so that both kinds of blocks come up."""
    flat = torch.zeros(grid.tokens, dtype=torch.bool)
    flat[grid.text_first + order[:140]] = flat[grid.text_first + order[290:]] = True
    return tuple(torch.where(flat[None, :, None, None], 0.2 * x + 1.5, x) for x in (q, k))


def loop_map(q, k, order, grid, pattern):
    """nQ x nK of one head; q, k lists of tokens."""
    n, d = grid.video, len(q[0])
    base = mean(k, range(len(k)))
    k = [[x - y for x, y in zip(row, base, strict=True)] for row in k]

    def blocks(size):
        at, found = 0, []
        for length in ragged(n, size):
            found.append([grid.text_first + order[i] for i in range(at, at + length)])
            at += length
        return found

    def similarity(x, tokens):
        units = [[c / math.sqrt(dot(x[t], x[t])) for c in x[t]] for t in tokens]
        return sum(dot(a, b) for a in units for b in units) / len(units) ** 2

    rows, columns = blocks(pattern.block_q), blocks(pattern.block_k)
    fine_q = [similarity(q, tokens) >= pattern.similarity for tokens in rows]
    fine_k = [similarity(k, tokens) >= pattern.similarity for tokens in columns]
    map = []
    for tokens, fine in zip(rows, fine_q, strict=True):
        scores = [
            dot(mean(q, tokens), mean(k, other)) / math.sqrt(d) if ok else -math.inf
            for other, ok in zip(columns, fine_k, strict=True)
        ]
        share = softmax(scores)
        if pattern.keep is not None:
            kept = cover(share, -1.0, int(pattern.keep * len(share) + 0.5))
        else:
            kept = cover(share, pattern.mass, 1, pattern.include_crossing)
        map.append([not fine or not ok or j in kept for j, ok in enumerate(fine_k)])
    return map, fine_q, fine_k


@pytest.mark.parametrize(
    "pattern",
    [
        SpargeAttn(0.7, similarity=0.5),
        SpargeAttn(0.7, similarity=0.5, include_crossing=True, order="raster"),
        SpargeAttn(None, 0.5, -0.1, block_q=64, block_k=64),
    ],
    ids=["paper", "covering", "top"],
)
def test_matches_the_transcription(pattern):
    q, k, v = random_qkv(GRID, batch=1, heads=2, width=8)
    order = hilbert(GRID) if pattern.order == "hilbert" else torch.arange(GRID.video)
    q, k = alike(q, k, GRID, order)
    found = route(pattern, GRID, q, k, v).layout.dense()
    for h in range(2):
        args = (x[0, :, h].double().tolist() for x in (q, k))
        wanted, fine_q, fine_k = loop_map(*args, order.tolist(), GRID, pattern)
        assert found[0, h, 1:-1, 1:-1].tolist() == wanted
        assert found[0, h, [0, -1]].all() and found[0, h, :, [0, -1]].all()
        if pattern.similarity > 0:
            assert len(set(fine_q)) == len(set(fine_k)) == 2  # both kinds came up


def test_nothing_alike_is_dense_and_stays_finite():
    q, k, v = random_qkv(ODD)
    found = route(SpargeAttn(similarity=0.99), ODD, q, k, v)
    assert found.layout.dense().all()
    assert torch.allclose(attend(found, q, k, v), dense(q, k, v), atol=1e-6)


def test_the_crossing_block_is_one_more():
    q, k, v = random_qkv(ODD)
    densities = [
        route(SpargeAttn(0.8, similarity=-1.0, include_crossing=crossing), ODD, q, k, v)
        .layout.density()
        .item()
        for crossing in (False, True)
    ]
    assert densities[0] < densities[1] < 1


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"SpargeAttn\.keep .* where mass=None"):
        SpargeAttn(keep=0.5)
    with pytest.raises(ValueError, match="gilbert, hilbert, raster"):
        SpargeAttn(order="peano")
