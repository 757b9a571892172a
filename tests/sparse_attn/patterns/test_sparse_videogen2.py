"""Sparse VideoGen 2 and SVG-EAR against loops over clusters."""

import math

import pytest
import torch

from accel.sparse_attn.clustering import first_centroids
from accel.sparse_attn.patterns.compensation import probe_errors
from accel.sparse_attn.patterns.sparse_videogen2 import SparseVideoGen2
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, random_qkv, route, token_mask
from tests.sparse_attn.test_clustering import loop_k_means

SMALL = TokenGrid(3, 5, 6, 4, 3)


def loop_kept(q, k, labels_q, labels_k, means_q, means_k, mass, least):
    """QC sets of key clusters, of one head."""
    kept = []
    sizes = [labels_k.count(c) for c in range(len(means_k))]
    for mean in means_q:
        scores = [
            math.log(n) + (mean @ other).item() / math.sqrt(q.shape[-1]) if n else -math.inf
            for n, other in zip(sizes, means_k, strict=True)
        ]
        share = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        cover, total = set(), 0.0
        for c in sorted(range(len(share)), key=lambda c: -share[c]):
            few = len(cover) < int(least * len(share) + 0.5)
            if sizes[c] and (total < mass or few):
                cover.add(c)
            total += share[c]
        kept.append(cover)
    return kept


@pytest.mark.parametrize(("mass", "least"), [(0.6, 0.1), (0.1, 0.5)])
def test_matches_the_transcription_over_two_steps(mass, least):
    pattern = SparseVideoGen2(5, 8, mass, least, first_rounds=3, rounds=2, block=64)
    state, centroids = {}, {}
    for step in range(2):
        q, k, v = random_qkv(SMALL, batch=1, heads=2, seed=0)
        moved = random_qkv(SMALL, batch=1, heads=2, seed=9)
        q, k, v = (x + 0.3 * step * y for x, y in zip((q, k, v), moved, strict=True))
        found = token_mask(route(pattern, SMALL, q, k, v, state=state))
        for h in range(2):
            labels = {}
            for name, x, number in (("q", q, 5), ("k", k, 8)):
                x = x[0, 4:-3, h]
                start = centroids.get((name, h), first_centroids(x[None, None], number, 0)[0, 0])
                labels[name], centroids[name, h] = loop_k_means(x, start, 2 if step else 3)
            kept = loop_kept(
                q, k, labels["q"], labels["k"], centroids["q", h], centroids["k", h], mass, least
            )
            seen = found[0, h].tolist()
            for i in range(SMALL.tokens):
                for j in range(SMALL.tokens):
                    text = not (4 <= i < 94 and 4 <= j < 94)
                    wanted = text or labels["k"][j - 4] in kept[labels["q"][i - 4]]
                    assert seen[i][j] == wanted, (step, h, i, j)


def test_every_token_its_own_cluster_and_all_mass_is_dense():
    q, k, v = random_qkv(SMALL)
    pattern = SparseVideoGen2(SMALL.video, SMALL.video, mass=1.0, block=64)
    found = route(pattern, SMALL, q, k, v)
    assert torch.allclose(attend(found, q, k, v), dense(q, k, v), atol=1e-6)
    order = found.order_q
    assert torch.equal(order.sort(-1).values, torch.arange(SMALL.tokens).expand_as(order))


def test_alike_tokens_need_few_blocks():
    """Tokens of 8 meanings, scattered: the clusters find them, the map is small and exact."""
    draw = torch.Generator().manual_seed(1)
    grid = TokenGrid(4, 12, 11, 5, 0)
    label = torch.randint(8, (grid.tokens,), generator=draw)
    code = 6 * torch.nn.functional.one_hot(torch.arange(8), 16).float()
    q = code[label][None, :, None] + 0.1 * torch.randn(1, grid.tokens, 2, 16, generator=draw)
    k, v = q.clone(), torch.randn(q.shape, generator=draw)
    found = route(SparseVideoGen2(16, 32, mass=0.99, least=0.0, block=64), grid, q, k, v)
    error = (attend(found, q, k, v) - dense(q, k, v)).norm() / dense(q, k, v).norm()
    assert found.layout.density() < 0.3
    assert error < 0.05


def test_a_cluster_of_the_same_keys_is_filled_in_exactly():
    """Keys of 3 kinds; whatever is left out, the means stand for it exactly."""
    draw = torch.Generator().manual_seed(2)
    kinds = torch.randn(3, 16, generator=draw)
    label = torch.arange(SMALL.tokens) % 3
    q, _, v = random_qkv(SMALL)
    k = kinds[label][None, :, None].expand_as(q).contiguous()
    pattern = SparseVideoGen2(4, 12, mass=0.05, least=0.0, compensate=True, block=64)
    found = route(pattern, SMALL, q, k, v)
    assert found.layout.density() < 0.7
    assert torch.allclose(attend(found, q, k, v), dense(q, k, v), atol=1e-5)
    bare = route(SparseVideoGen2(4, 12, mass=0.05, least=0.0, block=64), SMALL, q, k, v)
    assert not torch.allclose(attend(bare, q, k, v), dense(q, k, v), atol=1e-2)


def test_filling_in_matches_the_loop():
    q, k, v = random_qkv(SMALL, batch=1, heads=1)
    pattern = SparseVideoGen2(4, 6, mass=0.5, least=0.0, compensate=True, block=64)
    found = route(pattern, SMALL, q, k, v)
    seen, out = token_mask(found)[0, 0], attend(found, q, k, v)
    start = first_centroids(k[:, 4:-3].transpose(1, 2), 6, 0)[0, 0]
    labels, means = loop_k_means(k[0, 4:-3, 0], start, 50)
    for i in range(SMALL.tokens):
        top, bottom = torch.zeros(16), 0.0
        skipped = {}
        for j in range(SMALL.tokens):
            if seen[i, j]:
                weight = ((q[0, i, 0] @ k[0, j, 0]) / 4).exp()
                top, bottom = top + weight * v[0, j, 0], bottom + weight
            else:
                skipped.setdefault(labels[j - 4], []).append(j)
        for c, tokens in skipped.items():
            weight = len(tokens) * ((q[0, i, 0] @ means[c]) / 4).exp()
            top, bottom = top + weight * v[0, tokens, 0].mean(0), bottom + weight
        assert torch.allclose(out[0, i, 0], top / bottom, atol=1e-5)


def test_errors_of_means_match_the_loop():
    draw = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(n, 8, generator=draw) for n in (3, 40, 40))
    labels = torch.randint(6, (40,), generator=draw)
    labels[labels == 4] = 5  # an empty one
    sizes = torch.bincount(labels, minlength=6)
    means = torch.stack([k[labels == c].mean(0) if n else k[0] for c, n in enumerate(sizes)])
    found = probe_errors(q, k, v, labels, means, sizes, 8, 8**-0.5)
    for i in range(3):
        exact = ((k @ q[i]) / 8**0.5).softmax(0) @ v
        for c in range(6):
            key, value = k.clone(), v.clone()
            if sizes[c]:
                key[labels == c], value[labels == c] = means[c], v[labels == c].mean(0)
            other = ((key @ q[i]) / 8**0.5).softmax(0) @ value
            assert torch.allclose(found[i, c], (other - exact).norm(), atol=1e-5)


def test_choosing_by_error_beats_choosing_by_score():
    """Keys of great weight that are all the same need no look; those that differ do."""
    draw = torch.Generator().manual_seed(4)
    grid = TokenGrid(6, 10, 10, 3, 2)
    kinds = torch.randn(8, 16, generator=draw)
    label = torch.randint(8, (grid.tokens,), generator=draw)
    q, noise, v = random_qkv(grid, heads=2)
    q = 2 * kinds[label][None, :, None] + 0.2 * q
    spread = torch.where(label < 4, 0.05, 1.5)[None, :, None, None]
    k = kinds[label][None, :, None] + spread * noise
    found = route(SparseVideoGen2(8, 24, mass=0.5, compensate=True, block=64), grid, q, k, v)
    density = found.layout.density().item()
    by_error = SparseVideoGen2(8, 24, compensate=True, density=0.9 * density, block=64)
    chosen = route(by_error, grid, q, k, v)
    assert chosen.layout.density() <= density + 0.01
    errors = [(attend(r, q, k, v) - dense(q, k, v)).norm() for r in (chosen, found)]
    assert errors[0] < 0.5 * errors[1], errors


def test_odd_sizes_and_shared_keys():
    q, _, _ = random_qkv(ODD, heads=4)
    _, k, v = random_qkv(ODD, heads=2, seed=1)
    for compensate, density in ((False, None), (True, None), (True, 0.3)):
        pattern = SparseVideoGen2(
            9, 20, first_rounds=4, compensate=compensate, density=density, block=64
        )
        found = route(pattern, ODD, q, k, v)
        assert found.order_k.shape[1] == 2
        out = attend(found, q, k, v)
        assert torch.allclose(out[:, :11], dense(q, k, v)[:, :11], atol=1e-5)  # text
        assert out.isfinite().all()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="with compensate=True"):
        SparseVideoGen2(density=0.2)
