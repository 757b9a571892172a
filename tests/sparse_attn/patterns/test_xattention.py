"""XAttention against sums over antidiagonals, entry by entry."""

import math

import pytest
import torch

from accel.sparse_attn.patterns.xattention import XAttention
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, random_qkv, route, token_mask


def loop_scores(q, k, block, stride):
    """(n, n) shares of one head; q, k (S, D)."""
    tokens, width = q.shape
    groups = math.ceil(tokens / stride)
    sums = torch.zeros(groups, groups, dtype=torch.float64)
    for a in range(groups):
        for b in range(groups):
            for r in range(stride):
                i, j = a * stride + stride - 1 - r, b * stride + r
                if i < tokens and j < tokens:
                    sums[a, b] += (q[i] @ k[j]).item()
    weights = (sums / math.sqrt(width) / stride).softmax(-1)
    count, per = math.ceil(tokens / block), block // stride
    share = torch.zeros(count, count, dtype=torch.float64)
    for a in range(groups):
        for b in range(groups):
            share[a // per, b // per] += weights[a, b]
    return share / share.sum(-1, keepdim=True)


@pytest.mark.parametrize("stride", [8, 16])
def test_scores_and_blocks_match_the_transcription(stride):
    grid = TokenGrid(3, 7, 11, 10, 5)
    q, k, v = random_qkv(grid, heads=2)
    video = slice(10, 10 + grid.video)
    pattern = XAttention(mass=0.7, stride=stride, block=64)
    shares = pattern.scores(q[:, video], k[:, video], 0.25)
    found = route(pattern, grid, q, k, v).layout.dense()
    for b in range(2):
        for h in range(2):
            wanted = loop_scores(q[b, video, h], k[b, video, h], 64, stride)
            assert torch.allclose(shares[b, h].double(), wanted, atol=1e-6)
            for row, kept in zip(wanted.tolist(), found[b, h, 1:-1, 1:-1].tolist(), strict=True):
                total, cover = 0.0, set()
                for j in sorted(range(len(row)), key=lambda j: -row[j]):
                    if total < 0.7:
                        cover.add(j)
                    total += row[j]
                assert {j for j, x in enumerate(kept) if x} == cover
            assert found[b, h, [0, -1]].all() and found[b, h, :, [0, -1]].all()


def test_all_mass_is_dense():
    q, k, v = random_qkv(ODD)
    assert torch.allclose(
        attend(route(XAttention(mass=1.0, block=64), ODD, q, k, v), q, k, v),
        dense(q, k, v),
        atol=1e-6,
    )


def test_a_ragged_tail_changes_nothing_before_it():
    """Shares of whole blocks do not hear of the filling: doubling the last ragged token does."""
    q, k, _ = random_qkv(TokenGrid(1, 1, 130), batch=1, heads=1)
    whole = XAttention(block=64, stride=16).scores(q[:, :128], k[:, :128], 0.25)
    ragged = XAttention(block=64, stride=16).scores(q, k, 0.25)
    part = ragged[..., :2, :2] / ragged[..., :2, :2].sum(-1, keepdim=True)
    # within a row of groups the softmax only gains a term, so ratios hold group by group, and
    # nearly so in sums
    assert torch.allclose(part, whole, atol=0.02)
    assert ragged.isfinite().all()


def test_key_heads_may_be_fewer():
    q, _, _ = random_qkv(ODD, heads=4)
    _, k, v = random_qkv(ODD, heads=2, seed=1)
    wide = [x.repeat_interleave(2, 2) for x in (k, v)]
    few, many = (route(XAttention(0.6, block=64), ODD, q, *kv) for kv in ((k, v), wide))
    assert torch.equal(token_mask(few), token_mask(many))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="a divisor of block=128"):
        XAttention(stride=12)
