"""Sliding tiles: the published figures, and every window written out tile by tile."""

import itertools

import pytest
import torch

from accel.sparse_attn import SlidingTile
from accel.sparse_attn.pattern import Place
from accel.token_grid import TokenGrid


def place(grid):
    return Place(0, 1, 0.5, None, None, grid)


def routing(pattern, grid, heads=2):
    q = torch.zeros(1, grid.tokens, heads, 8)
    return pattern.route(q, q, q, place(grid))


@pytest.mark.parametrize(("window", "sparsity"), [((3, 3, 3), 0.91), ((5, 5, 5), 0.5833)])
def test_the_published_sparsity_of_hunyuan_video(window, sparsity):
    grid = TokenGrid(30, 48, 80)
    map, blocks = SlidingTile(window).map(grid, torch.device("cpu"))
    assert 1 - map.float().mean().item() == pytest.approx(sparsity, abs=1e-4)
    assert 1 - SlidingTile(window).density(grid) == pytest.approx(sparsity, abs=1e-4)
    assert blocks.size == 128 and (map.sum(-1) == map.sum(-1).flatten()[0]).all()


def attended(grid, pattern, window):
    """(S, S) bool in the model's order, by a plain loop over tokens."""
    sides = (grid.frames, grid.height, grid.width)
    cells = list(itertools.product(*map(range, sides)))
    count = [-(-s // t) for s, t in zip(sides, pattern.tile, strict=True)]
    mask = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool)
    for (i, query), (j, key) in itertools.product(enumerate(cells), repeat=2):
        near = True
        for axis in range(3):
            n, half = count[axis], min(window[axis], count[axis]) // 2
            own, other = query[axis] // pattern.tile[axis], key[axis] // pattern.tile[axis]
            centre = min(max(own, half), max(n - 1 - half, half))
            near &= abs(centre - other) <= half
        mask[grid.text_first + i, grid.text_first + j] = near
    return mask


@pytest.mark.parametrize("text", [(0, 0), (3, 0), (0, 5)])
def test_every_token_sees_its_window_and_all_text(text):
    grid = TokenGrid(3, 5, 6, *text)
    pattern = SlidingTile(tile=(1, 2, 2), heads=((1, 3, 1), (3, 1, 3)))
    found = routing(pattern, grid)
    order = found.order_q[0, 0]
    assert torch.equal(order, found.order_k[0, 0])
    for head, window in enumerate(pattern.heads):
        mask = torch.zeros(grid.tokens, grid.tokens, dtype=torch.bool)
        mask[order[:, None], order] = found.layout.mask()[0, head]
        assert torch.equal(mask, attended(grid, pattern, window))


def test_a_window_as_large_as_the_video_is_dense():
    assert routing(SlidingTile((3, 3, 3), (2, 4, 4)), TokenGrid(6, 12, 12)) is None
    assert routing(SlidingTile((3, 3, 3), (2, 4, 4)), TokenGrid(6, 12, 13)) is not None


def test_layers_and_steps_share_one_layout():
    grid, pattern = TokenGrid(4, 8, 8), SlidingTile((1, 1, 1), (2, 4, 4))
    assert routing(pattern, grid).layout is routing(pattern, grid).layout


@pytest.mark.parametrize(
    "wrong", [{"window": (2, 3, 3)}, {"tile": (0, 8, 8)}, {"heads": ((1, 1),)}], ids=str
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=r"odd numbers|three numbers"):
        SlidingTile(**wrong)


def test_a_window_for_every_head_needs_as_many_heads():
    with pytest.raises(ValueError, match="3 windows, and attention 2 heads"):
        routing(SlidingTile(heads=((1, 1, 1),) * 3), TokenGrid(8, 16, 16))
