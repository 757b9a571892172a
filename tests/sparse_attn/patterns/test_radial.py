"""Radial attention against a token-by-token transcription."""

import math
from itertools import pairwise

import pytest
import torch

from accel.sparse_attn.patterns.radial import Radial
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, attend, dense, place, random_qkv, route, token_mask


def sees(i, j, per_frame, decay, block, sink):
    """Whether token i sees token j, as A5 tells it."""
    apart = abs(i // per_frame - j // per_frame)
    if sink and j < per_frame:
        return True
    if apart <= 1:
        return True
    base, group = 2 ** int(per_frame).bit_length(), int(apart).bit_length()
    length = base / 2**group
    if length < block and apart % int(block / length) != 0:
        return False
    return abs(i % per_frame - j % per_frame) <= max(decay * length, block)


def loop_map(grid, decay, block, sink):
    """Kept block pairs of the video, column by column."""
    per_frame, n = grid.height * grid.width, grid.video
    count = math.ceil(n / block)
    kept = [[False] * count for _ in range(count)]
    for p in range(count):
        rows = range(p * block, min((p + 1) * block, n))
        for q in range(count):
            filled = touched = 0
            for j in range(q * block, min((q + 1) * block, n)):
                density = sum(sees(i, j, per_frame, decay, block, sink) for i in rows) / len(rows)
                filled += density > 1 / 3
                touched += density > 0
            kept[p][q] = touched > 0 and filled / touched > 0.6
    return torch.tensor(kept)


@pytest.mark.parametrize(("decay", "sink"), [(0.2, True), (0.95, False), (3.0, False)])
def test_matches_the_transcription(decay, sink):
    grid = TokenGrid(9, 9, 13, 5, 3)
    map, blocks = Radial(decay, sink, 64).map(grid, torch.device("cpu"))
    assert torch.equal(map[blocks.video, blocks.video], loop_map(grid, decay, 64, sink))
    assert map[blocks.text].all() and map[:, blocks.text].all()


def test_tokens_see_one_another_but_for_the_sink():
    grid = TokenGrid(12, 5, 30)
    mask = Radial(0.5, False, 64).tokens(torch.arange(grid.video), grid)
    assert torch.equal(mask, mask.T)
    sunk = Radial(0.5, True, 64).tokens(torch.arange(grid.video), grid)
    assert sunk[:, :150].all() and torch.equal(sunk[150:, 150:], mask[150:, 150:])


def test_cost_grows_by_the_logarithm_of_frames():
    """Whenever frames double, keys per query rise by the same number, not by twice as many."""
    keys = []
    for frames in (8, 16, 32, 64):
        grid = TokenGrid(frames, 32, 32)
        middle = frames // 2 * 1024 + torch.arange(480, 544)  # far from the frame's edges
        keys.append(Radial(1.0, False, 64).tokens(middle, grid).float().sum(-1).mean().item())
    steps = [b - a for a, b in pairwise(keys)]
    assert max(steps) < 1.2 * min(steps), steps  # twice as many each time would make it 4


def test_short_videos_are_dense_and_a_wide_band_is_too():
    q, k, v = random_qkv(ODD)
    grid = TokenGrid(2, 16, 10, 4, 8)
    assert Radial().route(q, k, v, place(grid)) is None
    # frames as small as a block keep every pair whose distance is kept; 5 frames of 63
    found = route(Radial(sink=False, block=64), ODD, q, k, v)
    mask = token_mask(found)
    assert torch.equal(mask[0, 0], mask[1, 2])
    assert not mask.all()
    out = attend(found, q, k, v)
    assert torch.allclose(out[:, :11], dense(q, k, v)[:, :11], atol=1e-6)  # text rows are dense


def test_no_row_is_empty_where_frames_are_smaller_than_blocks():
    grid = TokenGrid(600, 1, 1)
    map, _ = Radial(0.2, False, 64).map(grid, torch.device("cpu"))
    assert map.any(-1).all() and map.diagonal().all()


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"Radial\.decay must be above 0"):
        Radial(decay=0.0)
