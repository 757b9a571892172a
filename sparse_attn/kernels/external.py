"""Attention of other packages, where they are installed and a tiny call works.

Two of them walk a layout: FlashInfer (blocks of any size) and SpargeAttn (its own block sizes). The
others are dense: they are kernels of full layouts, in which nothing is skipped.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from accel.load import first_line

from ..layout import BlockLayout

DTYPES = (torch.float16, torch.bfloat16)
WORKSPACE_BYTES = 128 * 2**20


@dataclass(frozen=True)
class External:
    """One package as a kernel.

    Attributes:
        package: name of the module.
        install: how to get it.
        call: (q, k, v, layout, scale) -> (o, lse).
        sparse: whether it skips blocks; else the layout must be full.
        blocks: (queries, keys) of its blocks, where it allows no others; a function of the device.
        heads: head sizes it takes; any if none.
    """

    package: str
    install: str
    call: Callable[[Tensor, Tensor, Tensor, BlockLayout, float], tuple[Tensor, Tensor]]
    sparse: bool = False
    blocks: Callable[[torch.device], tuple[int, int]] | None = None
    heads: tuple[int, ...] = ()
    unproven: str = "it has never been launched on a card"

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        """The reason in words, None if usable.

        Whether a layout is full is read on the host where its builder did not say.
        """
        if reason := probe(self.package):
            return reason
        if q.device.type != "cuda":
            return f"it needs a GPU, the tensors are on {q.device.type}"
        return self.unfit(q, layout)

    def unfit(self, q: Tensor, layout: BlockLayout) -> str | None:
        """What about the tensors or the layout it cannot take."""
        if q.dtype not in DTYPES:
            return f"it computes float16 and bfloat16, got {q.dtype}"
        if self.heads and q.shape[-1] not in self.heads:
            return f"it takes heads of {self.heads}, got {q.shape[-1]}"
        if self.blocks is not None:
            wanted = self.blocks(q.device)
            if (layout.block_q, layout.block_k) != wanted:
                return f"its blocks are of {wanted}, got {layout.block_q, layout.block_k}"
            if layout.seq_q != layout.seq_k or layout.seq_q < 128:
                return "it takes at least 128 queries, as many as keys"
        if not layout.covered:
            return "it cannot leave out single keys, which an attention mask hides"
        if not self.sparse and layout.share != 1.0 and not bool(layout.dense().all()):
            return "it is dense, and the layout leaves blocks out"
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        return self.call(q, k, v, layout, scale)


@functools.cache
def probe(package: str) -> str | None:
    """Import a package and make a tiny call, once; why it is unusable, None if it works."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        missing = error.name == package
        return "not installed" if missing else first_line(error)
    except Exception as error:  # a broken package may raise anything while it is imported
        return first_line(error)
    if not torch.cuda.is_available():
        return "installed, but its kernels need a GPU"
    try:
        works(package)
    except Exception as error:
        return f"a tiny call failed: {first_line(error)}"
    return None


def works(package: str) -> str:
    """Make a tiny call on the GPU; the version if it is right.

    Raises:
        RuntimeError: what it returned is wrong; anything else that the package raises.
    """
    from ..layout import uniform

    kernel = EXTERNAL[package]
    q, k, v = (torch.randn(1, 256, 2, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    block_q, block_k = kernel.blocks(q.device) if kernel.blocks else (64, 64)
    q_start, k_start = (uniform(256, block, "cuda") for block in (block_q, block_k))
    full = torch.ones(1, 2, 256 // block_q, 256 // block_k, dtype=torch.bool, device="cuda")
    layout = BlockLayout.from_map(full, q_start, k_start, block_q, block_k, seq_q=256, seq_k=256)
    out = kernel.attend(q, k, v, layout, 64**-0.5)[0]
    heads = (x.transpose(1, 2) for x in (q, k, v))
    plain = torch.nn.functional.scaled_dot_product_attention(*heads)
    off = (out.transpose(1, 2) - plain).norm() / plain.norm()
    if not off < 0.05:
        raise RuntimeError(f"off by {float(off):.2f}")
    return version(package)


def version(package: str) -> str:
    """Of the installed package, whatever its distribution is called."""
    found = metadata.packages_distributions().get(package, [package])[0]
    return metadata.version(found)


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor]:
    call = importlib.import_module("flash_attn").flash_attn_func
    out, lse, *_ = call(q, k, v, softmax_scale=scale, return_attn_probs=True)
    return out, lse


def _sageattention(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor]:
    call = importlib.import_module("sageattention").sageattn
    found: tuple[Tensor, Tensor] = call(
        q, k, v, tensor_layout="NHD", sm_scale=scale, return_lse=True
    )
    return found


def _xformers(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor]:
    call = importlib.import_module("xformers.ops").memory_efficient_attention_forward_requires_grad
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    out, lse = call(q, k, v, scale=scale)
    return out, lse[..., : q.shape[1]]  # some of its kernels pad the rows


def _flashinfer(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Heads of the batch side by side; planning reads the map on the host at every call."""
    batch, seq, heads, head = q.shape
    k, v = (x.repeat_interleave(heads // k.shape[2], 2) for x in (k, v))
    query, key, value = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (q, k, v))
    rows, columns = (
        s.diff(dim=-1).expand(batch, heads, -1).flatten(0, 1).contiguous()
        for s in (layout.q_start, layout.k_start)
    )
    wrapper: Any = importlib.import_module("flashinfer").VariableBlockSparseAttentionWrapper(
        _workspace(q.device)
    )
    count = batch * heads
    wrapper.plan(
        layout.dense().flatten(0, 1),
        rows,
        columns,
        count,
        count,
        head,
        sm_scale=scale,
        q_data_type=q.dtype,
    )
    out, lse = wrapper.run(query, key, value, return_lse=True)
    empty = layout.row_ptr.diff().view(count, -1) == 0  # its output there is not defined
    nothing = torch.repeat_interleave(empty.flatten(), rows.flatten(), output_size=count * seq)
    nothing = nothing.view(count, seq)
    out = out.masked_fill(nothing[..., None], 0).view(batch, heads, seq, head).transpose(1, 2)
    lse = (lse.float() * math.log(2)).masked_fill(nothing, -torch.inf)  # powers of two there
    return out, lse.view(batch, heads, seq)


@functools.cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _spas_blocks(device: torch.device) -> tuple[int, int]:
    hopper = torch.cuda.is_available() and torch.cuda.get_device_capability(device) == (9, 0)
    return (64, 128) if hopper else (128, 64)


def _spas_sage_attn(
    q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """It tells no log-sum: that is NaN."""
    call = importlib.import_module("spas_sage_attn").block_sparse_sage2_attn_cuda
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))
    mask = layout.dense().to(torch.int8)
    out = call(q, k, v, mask_id=mask, scale=scale, tensor_layout="NHD", output_dtype=q.dtype)
    shape = (q.shape[0], q.shape[2], q.shape[1])
    return out.to(q.dtype), torch.full(shape, torch.nan, device=q.device)


EXTERNAL: dict[str, External] = {
    "flash_attn": External("flash_attn", "pip install flash-attn", _flash_attn),
    "flashinfer": External("flashinfer", "pip install flashinfer-python", _flashinfer, sparse=True),
    "sageattention": External(
        "sageattention", "pip install sageattention", _sageattention, heads=(64, 96, 128)
    ),
    "spas_sage_attn": External(
        "spas_sage_attn",
        "build it from its repository, thu-ml/SpargeAttn",
        _spas_sage_attn,
        sparse=True,
        blocks=_spas_blocks,
        heads=(64, 128),
    ),
    "xformers": External("xformers", "pip install 'accel[xformers]'", _xformers),
}
"""Package -> kernel; `accel doctor` lists them all."""
