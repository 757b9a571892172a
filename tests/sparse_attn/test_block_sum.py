import torch

from accel.sparse_attn.kernels.block_sum import block_sum
from accel.sparse_attn.layout import uniform


def test_matches_the_loop_and_rows_sum_to_their_queries():
    draw = torch.Generator().manual_seed(3)
    q = torch.randn(2, 75, 4, 8, generator=draw, dtype=torch.float64)
    k, _ = (torch.randn(2, 90, 2, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    wide = k.repeat_interleave(2, 2)
    scores = torch.einsum("bihd,bjhd->bhij", q, wide) * 0.3
    lse = scores.logsumexp(-1)
    found = block_sum(q, k, lse, uniform(75, 32), uniform(90, 16), 0.3)
    weights = scores.softmax(-1)
    for p in range(3):
        for c in range(6):
            part = weights[:, :, 32 * p : 32 * (p + 1), 16 * c : 16 * (c + 1)].sum((-2, -1))
            assert torch.allclose(found[:, :, p, c], part)
    assert torch.allclose(found.sum(-1), torch.tensor([32.0, 32.0, 11.0]).double())
    stale = block_sum(q, k, lse - 1, uniform(75, 32), uniform(90, 16), 0.3)
    assert torch.allclose(stale, found * torch.e)


def test_blocks_of_each_head_and_rows_without_keys():
    draw = torch.Generator().manual_seed(4)
    q, k = (torch.randn(1, 20, 2, 8, generator=draw) for _ in range(2))
    starts = torch.tensor([[[0, 5, 5, 20], [0, 1, 12, 20]]], dtype=torch.int32)
    scores = torch.einsum("bihd,bjhd->bhij", q, k)
    lse = scores.logsumexp(-1)
    lse[0, 0, 2] = -torch.inf
    found = block_sum(q, k, lse, starts, starts, 1.0)
    assert found[0, 0].sum(-1).tolist() == [4.0, 0.0, 15.0] or torch.allclose(
        found[0, 0].sum(-1), torch.tensor([4.0, 0.0, 15.0])
    )
    assert torch.allclose(found[0, 1, 1, 2], scores.softmax(-1)[0, 1, 1:12, 12:].sum())
