"""Orders of tokens: every one a permutation with an exact inverse, and near what it should be."""

import itertools

import pytest
import torch

from accel.sparse_attn.attending import arranged
from accel.sparse_attn.reorder import hilbert, inverse, raster, tiles, token_major
from accel.token_grid import TokenGrid

GRIDS = [(1, 1, 1), (1, 5, 7), (3, 4, 5), (8, 8, 8), (2, 9, 3)]
ORDERS = {
    "raster": raster,
    "token_major": token_major,
    "tiles": lambda grid: tiles(grid, (2, 3, 4))[0],
    "hilbert": hilbert,
}


def places(order, grid):
    """(S, 3) frame, row and column at every position."""
    frame = order // (grid.height * grid.width)
    return torch.stack([frame, order // grid.width % grid.height, order % grid.width], -1)


@pytest.mark.parametrize("sides", GRIDS)
@pytest.mark.parametrize("name", ORDERS)
def test_an_order_is_undone_exactly(name, sides):
    grid = TokenGrid(*sides)
    order = ORDERS[name](grid)
    assert sorted(order.tolist()) == list(range(grid.video))
    x = torch.randn(2, grid.video, 3, 4)
    back = arranged(arranged(x, order[None, None]), inverse(order)[None, None])
    assert torch.equal(back, x)


def test_an_order_for_every_head_and_sample_is_undone_exactly():
    x = torch.randn(2, 9, 3, 4)
    order = torch.stack([torch.randperm(9) for _ in range(6)]).view(2, 3, 9)
    moved = arranged(x, order)
    for b, h in itertools.product(range(2), range(3)):
        assert torch.equal(moved[b, :, h], x[b, order[b, h], h])
    assert torch.equal(arranged(moved, inverse(order)), x)


def test_tiles_hold_their_own_tokens_and_are_ragged_at_the_far_edges():
    grid = TokenGrid(3, 4, 5)
    order, sizes = tiles(grid, (2, 3, 4))
    assert sizes == [24, 6, 8, 2, 12, 3, 4, 1]
    for part, corner in zip(
        places(order, grid).split(sizes), itertools.product(range(2), repeat=3), strict=True
    ):
        tile = part // torch.tensor([2, 3, 4])
        assert (tile == torch.tensor(corner)).all()
        assert part.tolist() == sorted(part.tolist())


def test_token_major_keeps_the_frames_of_a_place_together():
    order = token_major(TokenGrid(3, 2, 2))
    assert order.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


@pytest.mark.parametrize("sides", [(1, 8, 8), (8, 8, 8), (1, 1, 16), (4, 4, 4)])
def test_the_hilbert_curve_steps_to_neighbours_where_it_fills_its_cube(sides):
    grid = TokenGrid(*sides)
    assert (places(hilbert(grid), grid).diff(dim=0).abs().sum(-1) == 1).all()


def test_a_stretch_of_the_hilbert_curve_is_more_compact_than_one_of_raster():
    grid = TokenGrid(6, 11, 13)

    def extent(order):
        parts = places(order, grid)[: grid.video // 64 * 64].view(-1, 64, 3).float()
        return parts.std(1).mean()

    assert extent(hilbert(grid)) < 0.7 * extent(raster(grid))


def test_a_tile_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        tiles(TokenGrid(2, 2, 2), (1, 0, 2))
