"""What patterns are given beside the Triton kernel, in Triton's interpreter; see test_tools.py."""

import torch

from accel.sparse_attn.kernels import KERNELS, TOOLS
from accel.sparse_attn.ordered import attend_routed
from accel.sparse_attn.patterns.adaspa import AdaSpa
from accel.sparse_attn.patterns.sparse_videogen2 import SparseVideoGen2
from accel.token_grid import TokenGrid
from tests.sparse_attn.places import place, random_qkv

GRID = TokenGrid(3, 7, 9, 5, 6)


def both(pattern, fractions):
    """Map and output with plain torch and with Triton beside the kernel."""
    found = []
    for tools in ({}, TOOLS["triton"]):
        state = {}
        for fraction in fractions:
            q, k, v = random_qkv(GRID, batch=1, heads=2)
            where = place(GRID, fraction=fraction, state=state, **tools)
            routing = pattern.route(q, k, v, where)
            out = attend_routed(KERNELS["reference"], routing, q, k, v)
        found.append((routing.layout.dense(), out))
    return found


def test_block_sums_choose_the_same():
    plain, ours = both(AdaSpa(0.5, search_at=(0.2, 0.6)), (0.3, 0.8))
    assert torch.equal(plain[0], ours[0]) and not plain[0].all()
    torch.testing.assert_close(ours[1], plain[1])


def test_means_are_merged_in_alike():
    plain, ours = both(SparseVideoGen2(4, 8, mass=0.4, compensate=True, block=64), (0.3,))
    assert torch.equal(plain[0], ours[0]) and not plain[0].all()
    torch.testing.assert_close(ours[1], plain[1])
