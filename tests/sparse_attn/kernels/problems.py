"""Attention problems for kernels, the float64 truth, and how far off eager code of a type is."""

import importlib.util
import inspect
import os
import sys
from dataclasses import dataclass, replace

import torch

from accel.sparse_attn.kernels.reference import Reference
from accel.sparse_attn.layout import BlockLayout, uniform

DEVICE = os.environ.get("CHECK_DEVICE", "cpu")
"""Where the checks of Triton kernels run: on the CPU in the interpreter, or on a card."""

TYPES = [torch.float16, torch.float32 if DEVICE == "cpu" else torch.bfloat16]
"""What Triton kernels compute there."""

FINEST = torch.float32 if DEVICE == "cpu" else torch.float16
"""Of these, the one with most digits."""


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


def amid_nan(asked):
    """The problem, and it again with NaN in every token that nothing attends to or from.

    Blocks 0 and 2 are ragged and kept, the tokens that follow them are left out: block 1 as keys,
    block 3 as queries and as keys.
    """
    map = torch.ones(asked.layout.dense().shape, dtype=torch.bool)
    map[:, :, :, [1, 3]] = False
    map[:, :, 3] = False
    asked = asked.with_map(map)
    edges = asked.layout.q_start[0, 0].tolist()
    q, k, v = (x.clone() for x in (asked.q, asked.k, asked.v))
    for block in (1, 3):
        for x in (k, v) if block == 1 else (q, k, v):
            x[:, edges[block] : edges[block + 1]] = torch.nan
    return asked, replace(asked, q=q, k=k, v=v)


SIZES = torch.tensor([0, 40, 80, 120, 160], dtype=torch.int32)[None, None]
"""Starts of four blocks that all end early, for `amid_nan`."""


def planted(tmp_path, module, old, new):
    """A module of the kernels with a fault in its source."""
    text = inspect.getsource(module)
    assert old in text
    text = text.replace(old, new).replace("from ..", "from accel.sparse_attn.")
    path = tmp_path / "planted.py"
    path.write_text(text.replace("from .", "from accel.sparse_attn.kernels."))
    spec = importlib.util.spec_from_file_location("planted", path)
    found = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = found  # where dataclasses look for it
    spec.loader.exec_module(found)
    return found
