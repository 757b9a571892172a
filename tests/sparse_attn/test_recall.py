"""Recall: how much of the attention mass the blocks cover, padding masks considered."""

import pytest
import torch

from accel.sparse_attn import Full, SparseAttention
from accel.sparse_attn.attending import _without, arranged
from accel.sparse_attn.layout import BlockLayout, uniform
from accel.sparse_attn.log import recall
from accel.sparse_attn.pattern import Routing
from tests.tiny_pipelines import call, make


def test_recall_is_the_share_of_attention_mass_that_is_kept():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 192, 2, 8)
    start = uniform(192, 64)
    map = torch.rand(1, 2, 3, 3) < 0.5
    layout = BlockLayout.from_map(map, start, start, 64, 64, seq_q=192, seq_k=192)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.3).softmax(-1)
    expected = (weights * layout.mask()).sum(-1)[0, :, ::4].mean(-1)
    torch.testing.assert_close(recall(q, k, layout, 0.3, 48), expected)


def test_recall_is_of_the_keys_that_a_mask_leaves():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 192, 2, 8)
    mask = torch.rand(2, 1, 1, 192) < 0.75
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.3).masked_fill(~mask, -torch.inf)
    weights = weights.softmax(-1)
    whole = _without(Full().route(q, k, k, None), mask, q, k)
    near = arranged(k, whole.order_k)
    assert torch.allclose(recall(q, near, whole.layout, 0.3, 48), torch.ones(2))
    start = uniform(192, 64)
    map = torch.rand(2, 2, 3, 3) < 0.5
    routing = Routing(BlockLayout.from_map(map, start, start, 64, 64, seq_q=192, seq_k=192))
    expected = (weights * routing.layout.mask()).sum(-1)[:, :, ::4].mean((0, 2))
    found = _without(routing, mask, q, k)
    near = arranged(k, found.order_k)
    torch.testing.assert_close(recall(q, near, found.layout, 0.3, 48), expected)


def test_a_full_map_recalls_all_where_text_is_padded():
    pipe = make("hunyuan_video")
    method = SparseAttention(Full(), kernel="gather", shortest=1, dense_until=0.0)
    pipe.enable_acceleration(method)
    call(pipe, "hunyuan_video", steps=2)
    assert pipe.acceleration.report().attention.recall == pytest.approx(1.0)
