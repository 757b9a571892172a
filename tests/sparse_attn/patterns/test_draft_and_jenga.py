"""DraftAttention and Jenga against loops over patches and blocks."""

import itertools
import math

import pytest
import torch

from accel.sparse_attn.gilbert import gilbert
from accel.sparse_attn.patterns.draft import DraftAttention
from accel.sparse_attn.patterns.jenga import Jenga
from accel.token_grid import TokenGrid
from tests.sparse_attn.patterns.pooled import cover, dot, mean, ragged, softmax
from tests.sparse_attn.places import ODD, attend, dense, random_qkv, route, token_mask

GRID = TokenGrid(4, 9, 11, 7, 3)


def shares(q, k, parts):
    """n x n probabilities between means of the tokens in each part, of one head."""
    means = [[mean(x, tokens) for tokens in parts] for x in (q, k)]
    return [softmax([dot(a, b) / math.sqrt(len(a)) for b in means[1]]) for a in means[0]]


def check(found, kept, parts, grid):
    """The kept pairs of parts, and all of text, token by token."""
    owner = {t: n for n, tokens in enumerate(parts) for t in tokens}
    found = found.tolist()
    for i in range(grid.tokens):
        for j in range(grid.tokens):
            wanted = i not in owner or j not in owner or owner[j] in kept[owner[i]]
            assert found[i][j] == wanted, (i, j)


@pytest.mark.parametrize(("density", "minimum"), [(0.25, 1), (0.1, 2), (0.02, 0)])
def test_draft_matches_the_transcription(density, minimum):
    q, k, v = random_qkv(GRID, batch=1, heads=2, width=8)
    parts = []
    for frame in range(4):
        for row, column in itertools.product((0, 4, 8), (0, 6)):
            places = itertools.product(
                range(row, min(row + 4, 9)), range(column, min(column + 6, 11))
            )
            parts.append([7 + frame * 99 + r * 11 + c for r, c in places])
    pattern = DraftAttention(density, (1, 4, 6), minimum)
    found = token_mask(route(pattern, GRID, q, k, v))
    for h in range(2):
        share = shares(*(x[0, :, h].double().tolist() for x in (q, k)), parts)
        pairs = sorted(itertools.product(range(24), repeat=2), key=lambda p: -share[p[0]][p[1]])
        best = set(pairs[: int(density * len(pairs) + 0.5)])
        kept = [
            {j for j in range(24) if (i, j) in best} | cover(share[i], -1.0, minimum)
            for i in range(24)
        ]
        check(found[0, h], kept, parts, GRID)


@pytest.mark.parametrize("first_frame", [True, False])
@pytest.mark.parametrize(("drop", "mass"), [(0.75, 0.3), (0.9, 0.6)])
def test_jenga_matches_the_transcription(drop, mass, first_frame):
    q, k, v = random_qkv(GRID, batch=1, heads=2, width=8)
    order = gilbert(GRID).tolist()
    parts, at = [], 0
    for size in ragged(GRID.video, 64):
        parts.append([7 + t for t in order[at : at + size]])
        at += size

    def place(token):
        return divmod(token - 7, 99)[0], (token - 7) % 99 // 11, (token - 7) % 11

    near = [
        {
            j
            for j, other in enumerate(parts)
            if any(
                max(abs(x - y) for x, y in zip(place(a), place(b), strict=True)) <= 1
                for a in tokens
                for b in other
            )
        }
        for tokens in parts
    ]
    lead = {j for j, tokens in enumerate(parts) if any(place(t)[0] == 0 for t in tokens)}
    pattern = Jenga(drop, mass, first_frame=first_frame, block=64)
    found = token_mask(route(pattern, GRID, q, k, v))
    for h in range(2):
        share = shares(*(x[0, :, h].double().tolist() for x in (q, k)), parts)
        number = int((1 - drop) * len(parts) + 0.5)
        kept = [
            cover(row, mass, max(1, number)) | near[i] | (lead if first_frame else set())
            for i, row in enumerate(share)
        ]
        check(found[0, h], kept, parts, GRID)


@pytest.mark.parametrize(
    "pattern", [DraftAttention(1.0, (2, 3, 5)), Jenga(0.0, block=64), Jenga(1.0, 1.0, block=64)]
)
def test_keeping_all_is_dense(pattern):
    q, _, _ = random_qkv(ODD, heads=4)
    _, k, v = random_qkv(ODD, heads=2, seed=1)
    assert torch.allclose(attend(route(pattern, ODD, q, k, v), q, k, v), dense(q, k, v), atol=1e-6)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"DraftAttention\.tile .* at most 128"):
        DraftAttention(tile=(2, 8, 16))
    with pytest.raises(ValueError, match=r"Jenga\.order must be one of"):
        Jenga(order="snake")
