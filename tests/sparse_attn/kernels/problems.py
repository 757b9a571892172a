"""Attention problems for kernels, the float64 truth, and how far off eager code of a type is."""

from dataclasses import dataclass, replace

import torch

from accel.sparse_attn.kernels.reference import Reference
from accel.sparse_attn.layout import BlockLayout, uniform


@dataclass(frozen=True)
class Problem:
    """Inputs (B, S, H, D), a layout, and what is known about them."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layout: BlockLayout

    @property
    def scale(self):
        return self.q.shape[-1] ** -0.5

    def by(self, kernel):
        return kernel.attend(self.q, self.k, self.v, self.layout, self.scale)

    def truth(self):
        """Output and log-sum of float64."""
        q, k, v = (x.double() for x in (self.q, self.k, self.v))
        return Reference().attend(q, k, v, self.layout, self.scale)

    def eager(self):
        """The output of plain code that rounds every step to the type of q."""
        group = self.q.shape[2] // self.k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (self.q, self.k, self.v))
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        mask = self.layout.mask()
        scores = (q @ k.mT * self.scale).masked_fill(~mask, -torch.inf)
        weights = scores.softmax(-1).masked_fill(~mask.any(-1, keepdim=True), 0)
        return (weights @ v).transpose(1, 2)

    def with_map(self, map):
        old = self.layout
        blocks = (old.q_start, old.k_start, old.block_q, old.block_k)
        new = BlockLayout.from_map(map, *blocks, seq_q=old.seq_q, seq_k=old.seq_k)
        return replace(self, layout=new)


def problem(
    tokens=129,
    head=64,
    heads=2,
    shared=1,
    batch=1,
    dtype=torch.float32,
    block=64,
    map=None,
    starts=None,
    factor=1.0,
    sequence_k=None,
):
    """Random q, k, v and a layout: uniform blocks and a full map unless told otherwise."""
    keys = sequence_k or tokens
    q = (torch.randn(batch, tokens, heads, head) * factor).to(dtype)
    k, v = (torch.randn(batch, keys, heads // shared, head).to(dtype) for _ in range(2))
    q_start = uniform(tokens, block) if starts is None else starts
    k_start = uniform(keys, block) if starts is None else starts
    if map is None:
        map = torch.ones(batch, heads, q_start.shape[-1] - 1, k_start.shape[-1] - 1).bool()
    layout = BlockLayout.from_map(map, q_start, k_start, block, block, seq_q=tokens, seq_k=keys)
    return Problem(q, k, v, layout)


def assert_right(asked, kernel, times=3.0):
    """Output no further from float64 than `times` eager code of that type; log-sum to 1e-5.

    A floor of a few roundings of the type lets a kernel be unlucky where eager code is exact.
    """
    out, lse = asked.by(kernel)
    true, true_lse = asked.truth()
    assert out.dtype == asked.q.dtype and lse.dtype == torch.float32
    assert torch.isfinite(out).all()
    rounding = torch.finfo(asked.q.dtype).eps
    for measure in (torch.linalg.vector_norm, lambda x: x.abs().max()):
        off, eager = measure(out - true), measure(asked.eager() - true)
        allowed = times * eager + rounding * measure(true)
        assert off <= allowed, f"off by {off:.3g}, eager by {eager:.3g}, allowed {allowed:.3g}"
    empty = true_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    assert torch.allclose(lse[~empty].double(), true_lse[~empty], rtol=1e-5, atol=2e-5)


def ragged(tokens, block):
    """Starts of blocks of every size from 0 to `block`: the last, some empty, one of one token."""
    sizes = [block, 1, 0, block // 2 + 3, 0]
    sizes.append(tokens - sum(sizes))
    assert 0 < sizes[-1] <= block
    return torch.tensor([0, *torch.tensor(sizes).cumsum(0)], dtype=torch.int32)[None, None]
