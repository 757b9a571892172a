"""Launches the Triton kernels: which tiles, which copies, gradients, tuning.

This module imports without Triton; the kernels are imported when first launched.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..layout import BlockLayout, per_layout
from .triton_targets import Tiles, compiled, descriptors, offered, padded, target_of

LOG2E = math.log2(math.e)
ADDRESSED = 2**31 - 1
"""Bytes that Triton addresses by 32 bits on AMD."""
TUNED: dict[tuple[object, ...], Tiles] = {}
"""Tiles that `tune` found faster than the first of the table, by kernel and shape."""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_no_launch(q: Tensor) -> str | None:
    """What keeps a kernel from launching on tensors like `q` (B, S, H, D); None if nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'accel[triton]'"
    if q.shape[-1] > 256 or q.shape[-1] % 8:
        return f"heads are of at most 256 channels in multiples of 8, got {q.shape[-1]}"
    if interpreted():
        if q.dtype not in (torch.float16, torch.float32):
            return f"the interpreter computes float16 and float32, got {q.dtype}"
        return None
    if q.device.type != "cuda":
        return f"it needs a GPU, the tensors are on {q.device.type}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes float16 and bfloat16, got {q.dtype}"
    if target_of(q.device) is None:
        return f"no tile sizes are known for {torch.cuda.get_device_name(q.device)}"
    return None


@functools.cache
def _target(device: torch.device) -> str:
    if device.type != "cuda":
        return "sm_90"  # the interpreter takes any
    found = target_of(device)
    assert found is not None
    return found


def choose(kernel: str, q: Tensor, block_q: int, block_k: int) -> Tiles:
    """The tiles for tensors like `q`: what tuning found, else the first that fits."""
    target, head = _target(q.device), q.shape[-1]
    known = TUNED.get((kernel, target, padded(head), q.dtype, block_q, block_k))
    return known or offered(kernel, target, head, block_q, block_k)[0]


def tune(
    kernel: str, q: Tensor, block_q: int, block_k: int, call: Callable[[], object]
) -> dict[Tiles, float]:
    """Time `call` with every entry on offer, keep the fastest for shapes like it; milliseconds.

    Never done by itself: what it finds differs from run to run and from one GPU to the next.
    """
    from triton.testing import do_bench

    target, head = _target(q.device), q.shape[-1]
    key = (kernel, target, padded(head), q.dtype, block_q, block_k)
    found: dict[Tiles, float] = {}
    for tiles in offered(kernel, target, head, block_q, block_k):
        TUNED[key] = tiles
        found[tiles] = do_bench(call, warmup=10, rep=50)
    TUNED[key] = min(found, key=lambda tiles: found[tiles])
    return found


def fitting(x: Tensor) -> Tensor:
    """x (B, S, H, D) as kernels are compiled for: copied unless it already is that.

    Heads are of a size that is compiled, padded with zeros; channels are contiguous; the start and
    the steps of the other dimensions are multiples of 16, which tensor descriptors need too. For
    AMD, memory is addressed by 32 bits.

    Raises:
        ValueError: too many elements for that.
    """
    missing = compiled(x.shape[-1]) - x.shape[-1]
    if missing:
        x = torch.nn.functional.pad(x, (0, missing))
    fits = x.stride(-1) == 1 and all(step % 16 == 0 for step in (*x.stride()[:-1], x.data_ptr()))
    if _target(x.device).startswith("gfx"):
        if x.numel() * 4 > ADDRESSED:  # as float32 gradients
            raise ValueError(
                f"kernels for AMD are compiled for at most {ADDRESSED // 4:,} elements a tensor, "
                f"got {x.numel():,}; take a smaller batch or kernel='gather'"
            )
        fits = fits and x.untyped_storage().nbytes() <= ADDRESSED
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def copied(x: Tensor, rows: int, tma: bool) -> Any:
    """What a kernel is given for `x` (B, S, H, D): a descriptor of tiles of `rows`, or itself."""
    if not tma:
        return x
    from triton.tools.tensor_descriptor import TensorDescriptor

    block = [1, rows, 1, padded(x.shape[-1])]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block)


def by_descriptors(x: Tensor) -> bool:
    """Whether the device copies tiles by descriptors."""
    return descriptors(_target(x.device))


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Steps of batch entry, token and head of each (B, S, H, D)."""
    return tuple(step for x in tensors for step in x.stride()[:3])


def starts(*tensors: Tensor) -> tuple[int, ...]:
    """Steps of batch entry and head of starts (B or 1, H or 1, n + 1); 0 where shared."""
    return tuple(0 if x.shape[i] == 1 else x.stride(i) for x in tensors for i in (0, 1))


def split(block: int, tile: int) -> int:
    """Binary logarithm of the tiles in a block."""
    return (block // tile).bit_length() - 1


def constants(q: Tensor, tiles: Tiles, tma: bool) -> dict[str, Any]:
    """Compile-time arguments and options of a launch."""
    return {
        "TILE_M": tiles.m,
        "TILE_N": tiles.n,
        "DIM": padded(q.shape[-1]),
        "HEAD": q.shape[-1],
        "TMA": tma,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "STAGES": tiles.stages,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


@per_layout
def longest_first(layout: BlockLayout) -> Tensor:
    """(B * H * nQ,) int32 rows: heads together, in each the rows of most blocks first."""
    counts = layout.row_ptr.diff().view(layout.batch * layout.heads, layout.blocks_q)
    within = counts.argsort(dim=1, descending=True, stable=True)
    head = torch.arange(len(counts), device=within.device)[:, None] * layout.blocks_q
    return (within + head).flatten().to(torch.int32)


def programs(device: torch.device, work: int, resident: int) -> int:
    """Size of a persistent grid: as many as all processors hold at once, so that none waits."""
    if device.type != "cuda":
        return min(work, 5)
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return min(work, resident * count)


def forward(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Output (B, S_q, H, D) and log-sum (B, H, S_q) of one launch on fitting tensors."""
    from .triton_attention import attention_forward

    tiles = choose("forward", q, layout.block_q, layout.block_k)
    batch, seq, heads, head = q.shape
    o = torch.empty(batch, seq, heads, head, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, seq, dtype=torch.float32, device=q.device)
    tma = by_descriptors(q)
    split_q, split_k = split(layout.block_q, tiles.m), split(layout.block_k, tiles.n)
    work = batch * heads * layout.blocks_q << split_q
    grid = programs(q.device, work, tiles.resident) if tiles.persistent else work
    attention_forward[(grid,)](
        q,
        copied(k, tiles.n, tma),
        copied(v, tiles.n, tma),
        o,
        lse,
        layout.row_ptr,
        layout.col,
        layout.partial,
        longest_first(layout),
        layout.q_start,
        layout.k_start,
        *strides(q, k, v, o),
        *starts(layout.q_start, layout.k_start),
        heads,
        heads // k.shape[2],
        layout.blocks_q,
        seq,
        work,
        scale * LOG2E,
        split_q,
        split_k,
        PERSISTENT=tiles.persistent,
        **constants(q, tiles, tma),
    )
    return o, lse


@per_layout
def inverted(layout: BlockLayout) -> BlockLayout:
    """Query blocks of every key block: the layout of the transposed map."""
    return BlockLayout.from_map(
        layout.dense().transpose(2, 3),
        layout.k_start,
        layout.q_start,
        layout.block_k,
        layout.block_q,
        seq_q=layout.seq_k,
        seq_k=layout.seq_q,
        capacity=layout.col.numel(),
    )


def backward(
    saved: tuple[Tensor, ...], layout: BlockLayout, scale: float, do: Tensor, dlse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given those of the output and of the log-sum."""
    from .triton_backward import gradient_keys, gradient_queries

    q, k, v, o, lse = saved
    do = fitting(do)
    batch, seq, heads, head = q.shape
    delta = (do.float() * o.float()).sum(-1).transpose(1, 2) - dlse
    delta = torch.where(lse == -torch.inf, 0, delta).contiguous()
    tma = by_descriptors(q)
    group = heads // k.shape[2]
    steps = (*strides(q, k, v, do), *starts(layout.q_start, layout.k_start))

    tiles = choose("queries", q, layout.block_q, layout.block_k)
    splits = split(layout.block_q, tiles.m), split(layout.block_k, tiles.n)
    dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    gradient_queries[(batch * heads * layout.blocks_q << splits[0],)](
        q,
        copied(k, tiles.n, tma),
        copied(v, tiles.n, tma),
        do,
        lse,
        delta,
        dq,
        layout.row_ptr,
        layout.col,
        layout.partial,
        longest_first(layout),
        layout.q_start,
        layout.k_start,
        *steps,
        heads,
        group,
        layout.blocks_q,
        seq,
        scale,
        *splits,
        **constants(q, tiles, tma),
    )

    turned = inverted(layout)
    kernel = "keys" if group == 1 else "keys_fp32"
    tiles = choose(kernel, q, layout.block_q, layout.block_k)
    splits = split(layout.block_q, tiles.m), split(layout.block_k, tiles.n)
    shape = (batch, k.shape[1], heads, head)
    kept = q.dtype if group == 1 else torch.float32
    dk, dv = (torch.zeros(shape, dtype=kept, device=q.device) for _ in range(2))
    gradient_keys[(batch * heads * layout.blocks_k << splits[1],)](
        copied(q, tiles.m, tma),
        k,
        v,
        copied(do, tiles.m, tma),
        lse,
        delta,
        dk,
        dv,
        turned.row_ptr,
        turned.col,
        turned.partial,
        longest_first(turned),
        layout.q_start,
        layout.k_start,
        *steps,
        heads,
        group,
        layout.blocks_k,
        seq,
        k.shape[1],
        scale,
        *splits,
        **constants(q, tiles, tma),
    )
    if group > 1:
        dk, dv = (x.unflatten(2, (-1, group)).sum(3).to(k.dtype) for x in (dk, dv))
    return dq, dk, dv


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        o, lse = forward(q, k, v, layout, scale)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.layout, ctx.scale = layout, scale
        return o, lse

    @staticmethod
    def backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        return (*backward(ctx.saved_tensors, ctx.layout, ctx.scale, do, dlse), None, None)


class Triton:
    """Block-sparse attention on the GPU, with gradients; block sizes from `triton_targets`.

    Compiled for every target and right in the interpreter, but `unproven`: `auto` leaves it alone.
    """

    unproven = "it has never been launched on a card"

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        return why_no_launch(q)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        trained = q.requires_grad or k.requires_grad or v.requires_grad
        call = _Attention.apply if torch.is_grad_enabled() and trained else forward
        o, lse = call(fitting(q), fitting(k), fitting(v), layout, float(scale))
        return o[..., : q.shape[-1]], lse


def block_sum(
    q: Tensor, k: Tensor, lse: Tensor, q_start: Tensor, k_start: Tensor, scale: float
) -> Tensor:
    """`kernels.block_sum.block_sum` by Triton: the same arguments, blocks of at most 128 tokens."""
    from .triton_attention import block_sums

    q, k, lse = fitting(q), fitting(k), lse.float().contiguous()
    q_start, k_start = (
        (s if s.ndim == 3 else s[None, None]).to(torch.int32) for s in (q_start, k_start)
    )
    tiles = choose("sums", q, 128, 128)
    tma = by_descriptors(q)
    split_q, split_k = split(128, tiles.m), split(128, tiles.n)
    batch, seq, heads, _ = q.shape
    blocks_q, blocks_k = q_start.shape[-1] - 1, k_start.shape[-1] - 1
    shape = (batch, heads, blocks_q, 1 << split_q, blocks_k, 1 << split_k)
    sums = torch.empty(shape, dtype=torch.float32, device=q.device)
    block_sums[(batch * heads * blocks_q << split_q,)](
        q,
        copied(k, tiles.n, tma),
        lse,
        sums,
        q_start,
        k_start,
        *strides(q, k),
        *starts(q_start, k_start),
        heads,
        heads // k.shape[2],
        blocks_q,
        blocks_k,
        seq,
        scale * LOG2E,
        split_q,
        split_k,
        **constants(q, tiles, tma),
    )
    return sums.sum((3, 5))


def merge_lse(o1: Tensor, lse1: Tensor, o2: Tensor, lse2: Tensor) -> tuple[Tensor, Tensor]:
    """`kernels.merge.merge_lse` by Triton, in one pass over memory."""
    from .triton_attention import merge_outputs

    head = o1.shape[-1]
    o1, o2 = (fitting(x).contiguous() for x in (o1, o2))
    lse1, lse2 = lse1.float().contiguous(), lse2.float().contiguous()
    batch, seq, heads, size = o1.shape
    o, lse = torch.empty_like(o1), torch.empty_like(lse1)
    rows = batch * seq * heads
    tiles = choose("merge", o1, 64, 64)
    merge_outputs[(-(-rows // tiles.m),)](
        o1,
        lse1,
        o2,
        lse2,
        o,
        lse,
        rows,
        seq,
        heads,
        TILE_M=tiles.m,
        DIM=padded(size),
        HEAD=size,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return o[..., :head], lse
