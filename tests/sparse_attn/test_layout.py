"""Block layouts: lists from maps and back, masks of keys, the forms of other kernels."""

import gc
import weakref

import pytest
import torch

from accel.sparse_attn.layout import BlockLayout, uniform
from tests.contract.runs import Reads

SIZES = ([64, 3, 0, 40], [64, 0, 64, 1, 30])


def starts(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)


def layout_of(map, sizes=SIZES, **more):
    q, k = (sum(s) for s in sizes)
    return BlockLayout.from_map(
        map, starts(sizes[0]), starts(sizes[1]), 64, 64, seq_q=q, seq_k=k, **more
    )


def random_map(share=0.6, shape=(2, 3, 4, 5)):
    torch.manual_seed(0)
    return torch.rand(shape) < share


def test_rows_list_partial_blocks_first_and_ascend():
    map = random_map()
    layout = layout_of(map)
    ptr, col = layout.row_ptr.tolist(), layout.col.tolist()
    for row, wanted in enumerate(map.flatten(0, 2)):
        listed = col[ptr[row] : ptr[row + 1]]
        kept = [j for j in wanted.nonzero()[:, 0].tolist() if SIZES[1][j]]
        short = [j for j in kept if SIZES[1][j] < 64]
        assert listed == short + [j for j in kept if SIZES[1][j] == 64]
        assert layout.partial[row] == len(short)
    assert layout.row_ptr.dtype == layout.col.dtype == layout.partial.dtype == torch.int32


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_map_comes_back_and_densities_are_of_tokens(share):
    map = random_map(share)
    layout = layout_of(map)
    held = torch.tensor(SIZES[1]) > 0
    assert torch.equal(layout.dense(), map & held)
    mask = map.repeat_interleave(torch.tensor(SIZES[0]), 2)
    mask = mask.repeat_interleave(torch.tensor(SIZES[1]), 3)
    assert torch.equal(layout.mask(), mask)
    torch.testing.assert_close(layout.density(), mask.float().mean())
    torch.testing.assert_close(layout.head_density(), mask.float().mean((2, 3)))
    some = torch.tensor([0, 66, 70, 106])
    assert torch.equal(layout.rows(some), mask[:, :, some])


def test_a_capacity_saves_memory_and_changes_nothing():
    map = random_map()
    whole = layout_of(map)
    tight = layout_of(map, capacity=int(whole.row_ptr[-1]))
    assert len(tight.col) < len(whole.col)
    assert torch.equal(tight.dense(), whole.dense())


def test_building_reads_nothing_on_the_host():
    map = random_map()
    with Reads() as reads:
        layout = layout_of(map)
        layout.density()
        layout.masked(torch.rand(2, 159) < 0.5)
    assert reads.count == 0


@pytest.mark.parametrize("block", [0, 32, 256])
def test_block_sizes_are_64_or_128(block):
    with pytest.raises(ValueError, match="64 or 128"):
        start = uniform(64, 64)
        map = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        BlockLayout.from_map(map, start, start, block, 64, seq_q=64, seq_k=64)


def test_starts_that_do_not_fit_the_map_are_named():
    with pytest.raises(ValueError, match="4 x 5 blocks needs 5 and 6 starts, got 5 and 5"):
        starts_k = starts(SIZES[1][:-1])
        BlockLayout.from_map(random_map(), starts(SIZES[0]), starts_k, 64, 64, seq_q=107, seq_k=129)


def test_masked_keys_are_gone_and_the_others_close_up():
    layout = layout_of(random_map())
    valid = torch.rand(2, 159) < 0.7
    valid[1] = torch.arange(159) < 100
    closed, order = layout.masked(valid)
    expected = layout.mask() & valid[:, None, None]
    at = order.expand(2, 3, -1)[:, :, None].expand(-1, -1, 107, -1)
    assert torch.equal(closed.mask(), expected.gather(3, at))
    torch.testing.assert_close(closed.density(), expected.float().mean())


def uniform_layout(tokens=150, share=0.5):
    count = -(-tokens // 64)
    start = uniform(tokens, 64)
    map = random_map(share, (2, 3, count, count))
    return BlockLayout.from_map(map, start, start, 64, 64, seq_q=tokens, seq_k=tokens)


def test_flex_masks_the_same_pairs():
    from torch.nn.attention.flex_attention import create_mask

    layout = uniform_layout()
    blocks = layout.to_flex()
    mask = create_mask(blocks.mask_mod, 2, 3, 150, 150, device="cpu")
    assert torch.equal(mask, layout.mask())
    assert torch.equal(blocks.to_dense().bool(), layout.dense())


def test_fa4_lists_hold_what_the_rows_hold():
    layout = uniform_layout()
    lists = layout.to_fa4()
    rebuilt = torch.zeros_like(layout.dense())
    for kind in ("mask", "full"):
        count, index = lists[f"{kind}_block_cnt"], lists[f"{kind}_block_idx"]
        assert count.dtype == index.dtype == torch.int32
        for at in torch.cartesian_prod(*map(torch.arange, count.shape)).tolist():
            kept = index[tuple(at)][: count[tuple(at)]].tolist()
            assert kept == sorted(kept) and all((j == 2) == (kind == "mask") for j in kept)
            rebuilt[tuple(at)][kept] = True
    assert torch.equal(rebuilt, layout.dense())


def test_bsr_is_one_matrix_with_the_heads_on_its_diagonal():
    layout = uniform_layout(tokens=192)
    indptr, indices = layout.to_bsr()
    matrix = torch.zeros(18, 18, dtype=torch.bool)
    for row in range(18):
        matrix[row, indices[indptr[row] : indptr[row + 1]].long()] = True
    expected = torch.block_diag(*layout.dense().flatten(0, 1).int()).bool()
    assert torch.equal(matrix, expected)


def test_bsr_has_no_mask_for_a_ragged_tail():
    with pytest.raises(ValueError, match="150 queries are no multiple of blocks of 64"):
        uniform_layout(tokens=150).to_bsr()


def test_as_few_blocks_as_can_be_need_not_be_uniform():
    """Ten tokens of text in a block of their own, and keys that a mask hides in a full one."""
    start = torch.tensor([0, 10, 70])
    map = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="blocks vary in size"):
        BlockLayout.from_map(map, start, start, 64, 64, seq_q=70, seq_k=70).to_flex()
    hidden, _ = uniform_layout().masked(torch.arange(150).expand(2, -1) % 5 > 0)
    assert not hidden.covered
    with pytest.raises(ValueError, match="blocks vary in size"):
        hidden.to_fa4()


@pytest.mark.parametrize("form", ["to_flex", "to_fa4", "to_bsr"])
def test_forms_that_know_one_block_size_refuse_others(form):
    with pytest.raises(ValueError, match="blocks vary in size"):
        getattr(layout_of(random_map()), form)()


def test_what_is_built_from_a_layout_lives_as_long_as_it():
    start = uniform(200, 64)
    layouts = [
        BlockLayout.from_map(
            torch.ones(1, 1, 4, 4).bool(), start, start, 64, 64, seq_q=200, seq_k=200
        )
        for _ in range(2)
    ]
    first, second = (layout.to_flex() for layout in layouts)
    assert layouts[0].to_flex() is first is not second
    mask = weakref.ref(first)
    del first, layouts[0]
    gc.collect()
    assert mask() is None
    assert layouts[0].to_flex() is second
