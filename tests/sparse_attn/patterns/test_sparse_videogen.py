"""Sparse VideoGen against a plain-loop transcription of its classification and its band."""

import math

import pytest
import torch

from accel.sparse_attn.patterns.sparse_videogen import SparseVideoGen, bands
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, place, random_qkv, route, token_mask


def loop_mask(grid, density, sink, block, temporal):
    """(S, S): which token sees which, token by token."""
    n, text = grid.video, grid.tokens - grid.video
    per_frame = grid.height * grid.width
    share = (density * (n + text) ** 2 - 2 * n * text - text * text) / (n * n)
    width = n * (1 - math.sqrt(1 - min(1, max(0, share))))

    def spot(token):
        """Position of a video token in the order of the head."""
        frame, at = divmod(token - grid.text_first, per_frame)
        return at * grid.frames + frame if temporal else frame * per_frame + at

    def middle(position):
        first = position // block * block
        return (first + min(first + block, n)) / 2

    def is_text(token):
        return not grid.text_first <= token < grid.text_first + n

    first_frame = math.ceil(per_frame / block) * block
    mask = torch.zeros(n + text, n + text, dtype=torch.bool)
    for i in range(n + text):
        for j in range(n + text):
            near = abs(middle(spot(i)) - middle(spot(j))) <= width
            sunk = sink and not temporal and spot(j) < first_frame
            mask[i, j] = is_text(i) or is_text(j) or near or sunk
    return mask


def clustered_by(grid, kind, heads=1, seed=0):
    """q, k that attend within a frame, or along time at one place."""
    draw = torch.Generator().manual_seed(seed)
    frame = torch.arange(grid.frames).repeat_interleave(grid.height * grid.width)
    spot = torch.arange(grid.height * grid.width).repeat(grid.frames)
    label = frame if kind == "spatial" else spot
    codes = torch.randn(int(label.max()) + 1, 64, generator=draw)
    x = torch.randn(1, grid.tokens, heads, 64, generator=draw)
    x[:, grid.text_first : grid.text_first + grid.video] = codes[label][None, :, None] * 2
    return x, x.clone(), torch.randn(x.shape, generator=draw)


@pytest.mark.parametrize("sink", [True, False])
def test_masks_match_the_transcription(sink):
    pattern = SparseVideoGen(density=0.5, sink=sink, block=64)
    spatial, temporal = (clustered_by(ODD, kind) for kind in ("spatial", "temporal"))
    q, k, v = (torch.cat(pair, 2) for pair in zip(spatial, temporal, strict=True))
    found = token_mask(route(pattern, ODD, q, k, v))
    for head in (0, 1):
        assert torch.equal(found[0, head], loop_mask(ODD, 0.5, sink, 64, head == 1))


def test_heads_are_told_apart_by_the_error_on_some_queries():
    grid = TokenGrid(6, 8, 10, 3, 2)
    q, k, v = random_qkv(grid, batch=2, heads=4)
    pattern = SparseVideoGen(density=0.4, rows=9, block=64)
    state = {}
    found = route(pattern, grid, q, k, v, state=state)
    masks = [loop_mask(grid, 0.4, True, 64, temporal) for temporal in (False, True)]
    assert len(state["rows"]) == 9
    for b in range(2):
        for h in range(4):
            errors = [0.0, 0.0]
            for i in state["rows"].tolist():
                scores = k[b, :, h] @ q[b, i, h] / 4
                exact = scores.softmax(0) @ v[b, :, h]
                for n, mask in enumerate(masks):
                    seen = mask[i]
                    part = scores[seen].softmax(0) @ v[b, seen, h]
                    errors[n] += (part - exact).square().sum().item()
            turned = not torch.equal(found.order_q[b, h], torch.arange(grid.tokens))
            assert turned == (errors[1] < errors[0])
    assert not route(pattern, grid, q, k, v, state=state).order_q.equal(found.order_q[:1])


def test_structured_heads_are_recovered():
    grid = TokenGrid(8, 16, 8)
    for kind in ("spatial", "temporal"):
        q, k, v = clustered_by(grid, kind)
        found = route(SparseVideoGen(0.3, block=64), grid, q, k, v)
        other = route(SparseVideoGen(0.3, block=64), grid, *random_qkv(grid, 1, 1, 64))
        near, far = (
            (attend(r, q, k, v) - dense(q, k, v)).norm() / dense(q, k, v).norm()
            for r in (found, other)
        )
        assert near < 0.2
        assert near <= far


def test_query_heads_that_share_keys_share_the_order():
    q, _, _ = random_qkv(ODD, heads=4)
    _, k, v = random_qkv(ODD, heads=2, seed=1)
    found = route(SparseVideoGen(1.0, block=64), ODD, q, k, v)
    assert found.order_k.shape[1] == 2 and found.order_q.shape[1] == 4
    assert torch.equal(found.order_k.repeat_interleave(2, 1), found.order_q)
    assert torch.allclose(attend(found, q, k, v), dense(q, k, v), atol=1e-6)


def test_density_and_pictures():
    grid = TokenGrid(16, 16, 16)
    _, maps, _ = bands(SparseVideoGen(0.25, sink=False, block=64), grid, torch.device("cpu"))
    assert maps[1].float().mean().item() == pytest.approx(0.25, abs=0.02)
    q, k, v = random_qkv(TokenGrid(1, 8, 8))
    assert SparseVideoGen().route(q, k, v, place(TokenGrid(1, 8, 8))) is None
    with pytest.raises(ValueError, match=r"SparseVideoGen\.density"):
        SparseVideoGen(density=0)
