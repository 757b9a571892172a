from itertools import pairwise

import pytest
import torch

from accel.sparse_attn.blocks import by_frame, cut, even
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import ODD, random_qkv


def test_text_has_blocks_of_its_own():
    blocks = cut(TokenGrid(2, 3, 5, 9, 3), 8)
    assert blocks.start.tolist() == [0, 8, 9, 17, 25, 33, 39, 42]
    assert blocks.text.tolist() == [True, True, False, False, False, False, True]
    assert blocks.video == slice(2, 6)


def test_means_are_of_the_tokens_a_block_holds():
    order = torch.randperm(ODD.video, generator=torch.Generator().manual_seed(2))
    blocks = cut(ODD, 64, order=order)
    _, k, _ = random_qkv(ODD)
    taken = [*range(11), *(order + 11).tolist(), *range(11 + ODD.video, ODD.tokens)]
    ends = blocks.start.tolist()
    means = blocks.means(k)
    for n, (a, b) in enumerate(pairwise(ends)):
        wanted = k[:, taken[a:b]].mean(1)
        assert torch.allclose(means[:, :, n], wanted, atol=1e-6)


def test_blocks_that_keep_to_their_frame():
    blocks, frame = by_frame(ODD, 64, torch.device("cpu"))
    assert even(63, 64) == [63]
    assert even(1560, 128) == [120] * 13
    assert frame.tolist() == [-1, 0, 1, 2, 3, 4, -1]
    assert blocks.lead(ODD).tolist() == [False, True, False, False, False, False, False]


def test_sizes_must_make_the_video():
    with pytest.raises(ValueError, match="do not make a video of 315"):
        cut(ODD, 64, sizes=[64, 64])
    with pytest.raises(ValueError, match="1 to 128"):
        cut(ODD, 256)
