"""The attention seam: handlers at the self-attention of a denoiser, where q, k and v are ready.

    layers = attach(site.patches, site.family, denoiser, make, "SparseAttention")

`make(layer)` returns the handler of one self-attention module, or None to leave it alone:

    handler(q, k, v, plain) -> out

with q (B, S_q, H, D), k and v (B, S_k, H_k, D) after norms and rotary embeddings, and `plain(q, k,
v)` what the model would have called (`Plain`: mask and scale included, other tokens allowed). The
handler that was attached first is outermost. Handlers run only in the runs of their acceleration;
cross-attention is never touched, and no attention processor is rewritten or copied.

Models that go through `dispatch_attention_fn` are given a registered backend on
`processor._attention_backend`; under regional compile it is one opaque operator, the same for every
layer, that learns from the call of the block which layer runs. Models that call
`scaled_dot_product_attention` themselves are met by a `TorchFunctionMode` around the module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .attention_backend import SDPA, attended, backend_over, is_ours
from .family import Family
from .patch import PatchStack
from .self_attention import Layer, self_attention

Handler = Callable[[Tensor, Tensor, Tensor, "Plain"], Tensor]
"""`handler(q, k, v, plain)`."""


@dataclass(frozen=True)
class Plain:
    """What the model would have called: `plain(q, k, v)`, tensors (B, S, H, D).

    Attributes:
        call: the attention of the model.
        mask: its mask, boolean (True attends) or added to the scores; None without.
        scale: factor of the scores; None for 1 / sqrt(D).
        part: number of the call within its module: Mochi attends to each sample apart.
        shards: processes that share the sequence (Ulysses). Each sees all tokens, for some heads;
            the sequence is the shards' one after another, each with its part of the text.
        group: these processes, as torch.distributed knows them; each has as many heads, those of
            rank 0 first. None where there are no others.
    """

    call: Callable[[Tensor, Tensor, Tensor], Tensor]
    mask: Tensor | None
    scale: float | None
    part: int
    shards: int = 1
    group: Any = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.call(q, k, v)


@dataclass
class Frame:
    """A call of a module in which attention is handled."""

    handler: Handler
    outer: Frame | None
    calls: int = 0


_frame: ContextVar[Frame | None] = ContextVar("accel_attention", default=None)


def attach(
    patches: PatchStack,
    family: Family,
    denoiser: torch.nn.Module,
    make: Callable[[Layer], Handler | None],
    label: str,
) -> list[Layer]:
    """Put handlers at the self-attention of `denoiser`; returns the modules met, in order.

    Raises:
        ValueError: the family does not say which modules attend to what.
    """
    layers = self_attention(family, denoiser)
    if not layers:
        raise ValueError(
            f"family {family.name} does not say which modules of {type(denoiser).__name__} are "
            f"self-attention, so {label} finds nothing to work on"
        )
    blocks: dict[torch.nn.Module, list[Layer]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    for block, inside in blocks.items():
        made = [make(layer) for layer in inside]
        if not any(made):
            continue
        dispatches = [hasattr(type(layer.processor), "_attention_backend") for layer in inside]
        for layer, dispatch in zip(inside, dispatches, strict=True):
            if dispatch:
                patches.share(layer.processor, "_attention_backend", _over(layer.processor))
        if len(inside) == 1 and dispatches[0] and made[0] is not None:
            patches.call(block, functools.partial(_enter, made[0], None), f"{label} in attention")
            continue
        for layer, handler, dispatch in zip(inside, made, dispatches, strict=True):
            if handler is not None:
                enter = functools.partial(_enter, handler, None if dispatch else _Direct())
                patches.call(layer.module, enter, f"{label} on {layer.path}")
    return layers


def missing(layers: Iterable[Layer]) -> list[str]:
    """Paths of modules whose processor was replaced since, so that handlers are not asked."""
    return [
        layer.path
        for layer in layers
        if hasattr(type(layer.processor), "_attention_backend")
        and not is_ours(vars(layer.processor).get("_attention_backend"))
    ]


def _over(processor: Any) -> Any:
    current = vars(processor).get("_attention_backend")
    if current is None:
        current = type(processor)._attention_backend
    return current if is_ours(current) else backend_over(current)


def _enter(
    handler: Handler,
    mode: TorchFunctionMode | None,
    call: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    token = _frame.set(Frame(handler, _frame.get()))
    try:
        if mode is None:
            return call(*args, **kwargs)
        with mode:
            return call(*args, **kwargs)
    finally:
        _frame.reset(token)


@attended(lambda: _frame.get() is not None)
def _attend(
    call: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    shards: int,
    group: Any,
) -> Tensor:
    """One attention of a model, through the handlers of the module that runs, if any."""
    frame = _frame.get()
    if frame is None or q.shape[1] != k.shape[1]:
        return call(q, k, v)
    while frame is not None:
        call = _through(frame.handler, Plain(call, mask, scale, frame.calls, shards, group))
        frame.calls += 1
        frame = frame.outer
    token = _frame.set(None)
    try:
        return call(q, k, v)
    finally:
        _frame.reset(token)


def _through(handler: Handler, plain: Plain) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: handler(q, k, v, plain)


class _Direct(TorchFunctionMode):
    """Sends calls of `scaled_dot_product_attention` through the seam."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not SDPA or _frame.get() is None:
            return func(*args, **kwargs)
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        q, k, v = (given.pop(name) for name in names[:3])
        if q.ndim != 4 or given.get("is_causal") or given.get("dropout_p"):
            return func(*args, **kwargs)

        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return func(*(t.transpose(1, 2) for t in (q, k, v)), **given).transpose(1, 2)

        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = _attend(call, q, k, v, given.get("attn_mask"), given.get("scale"), 1, None)
        return out.transpose(1, 2)
