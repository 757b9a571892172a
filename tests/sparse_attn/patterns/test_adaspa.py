"""AdaSpa: its searches, its levels by hand, and its map against a loop over blocks."""

import pytest
import torch

from accel.sparse_attn.kernels.block_sum import block_sum
from accel.sparse_attn.layout import uniform
from accel.sparse_attn.patterns.adaspa import AdaSpa, packed, unpacked
from accel.sparse_attn.selection import select
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, place, random_qkv

WIDE = TokenGrid(6, 13, 11, 9, 70)


def loop_found(q, k, lse, grid, s, adaptive):
    """One batch entry, head by head and block by block, of 64 tokens."""
    scores = torch.einsum("ihd,jhd->hij", q, k) * q.shape[-1] ** -0.5
    weights = (scores - lse[..., None]).exp().double()
    spans, kinds = [], []
    for kind, first, n in (
        ("text", 0, grid.text_first),
        ("video", grid.text_first, grid.video),
        ("text", grid.text_first + grid.video, grid.text_last),
    ):
        for at in range(0, n, 64):
            spans.append((first + at, first + min(at + 64, n)))
            kinds.append(kind)
    video = [i for i, kind in enumerate(kinds) if kind == "video"]
    heads = q.shape[1]

    def mass(h, p, c):
        return weights[h, slice(*spans[p]), slice(*spans[c])].sum().item()

    def keys(h, p, level):
        number = max(1, int((1 - level) * len(video) + 0.5 + 1e-9))
        best = sorted(video, key=lambda c: (-mass(h, p, c), c))[:number]
        return {*best, *(c for c in range(len(spans)) if kinds[c] == "text")}

    levels = [s] * heads
    if adaptive:
        recall = []
        for h in range(heads):
            kept = sum(mass(h, p, c) for p in video for c in keys(h, p, s))
            recall.append(kept / sum(mass(h, p, c) for p in video for c in range(len(spans))))
        n = min(sum(r > 0.8 for r in recall), heads // 2)
        order = sorted(range(heads), key=lambda h: (-recall[h], h))
        for h in order[:n]:
            levels[h] = (1 + s) / 2
        for h in order[heads - n :]:
            levels[h] = max(0.0, (3 * s - 1) / 2)
    map = torch.zeros(heads, len(spans), len(spans), dtype=torch.bool)
    for h in range(heads):
        for p in range(len(spans)):
            seen = keys(h, p, levels[h]) if kinds[p] == "video" else range(len(spans))
            map[h, p, list(seen)] = True
    return map


def uneven(grid, heads=5, seed=0):
    """Heads from nearly flat to sharp."""
    q, k, v = random_qkv(grid, heads=heads, seed=seed)
    sharp = torch.linspace(0.2, 6, heads)[:, None]
    return q * sharp, k, v


@pytest.mark.parametrize("adaptive", [True, False])
def test_searches_match_the_transcription(adaptive):
    pattern = AdaSpa(sparsity=0.6, search_at=(0.2, 0.6), head_adaptive=adaptive)
    state, calls = {}, [uneven(WIDE, seed=n) for n in range(5)]
    maps = []
    for n, (q, k, v) in enumerate(calls):
        found = pattern.route(q, k, v, place(WIDE, fraction=n / 5, state=state))
        if n == 0:
            assert found is None and not state
            continue
        if n == 1:  # dense, and searched after
            assert found.layout.dense().all()
            assert torch.allclose(attend(found, q, k, v), dense(q, k, v), atol=1e-5)
            lse = (torch.einsum("bihd,bjhd->bhij", q, k) / 4).logsumexp(-1)
            continue
        maps.append(found.layout.dense())
    for b in range(2):
        for n, map in zip((1, 3, 3), maps, strict=True):  # searched at 1 and, with old sums, at 3
            wanted = loop_found(calls[n][0][b], calls[n][1][b], lse[b], WIDE, 0.6, adaptive)
            assert torch.equal(map[b], wanted), n


def test_levels_by_hand_keep_the_mean():
    recall = torch.tensor([[0.9, 0.5, 0.81, 0.7, 0.3], [0.9, 0.9, 0.9, 0.95, 0.1]])
    levels = AdaSpa(sparsity=0.8).levels(recall)
    wanted = torch.tensor([[0.9, 0.7, 0.9, 0.8, 0.7], [0.9, 0.8, 0.7, 0.9, 0.7]])
    assert torch.allclose(levels, wanted)
    assert torch.allclose(levels.mean(-1), torch.tensor(0.8))
    low = AdaSpa(sparsity=0.2).levels(recall)  # (3 s - 1) / 2 would be below 0
    assert torch.allclose(low[0], torch.tensor([0.4, 0.0, 0.4, 0.2, 0.0]))


def test_few_steps_are_searched_too():
    pattern, state = AdaSpa(search_at=(0.2, 0.6)), {}
    q, k, v = uneven(ODD)
    dense_steps = []
    for n in range(4):
        found = pattern.route(q, k, v, place(ODD, fraction=n / 4, state=state))
        if found is None or found.layout.dense().all():
            dense_steps.append(n)
        if found is not None:
            attend(found, q, k, v)
    assert dense_steps == [0, 1] and state["searches"] == 2


def test_the_exact_map_recalls_at_least_what_pooled_ones_do():
    grid = TokenGrid(8, 8, 8)
    q, k, _ = random_qkv(grid)
    lse = (torch.einsum("bihd,bjhd->bhij", q, k) / 4).logsumexp(-1)
    starts = uniform(grid.tokens, 64)
    weights = block_sum(q, k, lse, starts, starts, 0.25)
    pooled = [x.unflatten(1, (-1, 64)).mean(2).transpose(1, 2) for x in (q, k)]
    exact, mean = (select(s, keep=0.25) for s in (weights, pooled[0] @ pooled[1].mT))
    kept = [(weights * map).sum((-2, -1)) for map in (exact, mean)]
    assert (kept[0] >= kept[1]).all() and (kept[0] > kept[1]).any()


def test_maps_are_kept_as_bits():
    map = torch.rand(2, 3, 5, 19, generator=torch.Generator().manual_seed(0)) < 0.5
    assert packed(map).shape == (2, 3, 5, 3) and packed(map).dtype == torch.uint8
    assert torch.equal(unpacked(packed(map), 19), map)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="rising fractions"):
        AdaSpa(search_at=(0.6, 0.2))
    with pytest.raises(ValueError, match="rising fractions"):
        AdaSpa(search_at=(10, 30))
