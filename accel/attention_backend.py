"""Our entry in diffusers' table of attention backends: one member per backend it stands before."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    _templated_context_parallel_attention,
    dispatch_attention_fn,
)
from torch import Tensor

SDPA = torch._C._nn.scaled_dot_product_attention
PREFIX = "accel"

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
Attend = Callable[[Call, Tensor, Tensor, Tensor, Tensor | None, float | None, int, Any], Tensor]

_seam: list[tuple[Attend, Callable[[], bool]]] = []


def attended(handling: Callable[[], bool]) -> Callable[[Attend], Attend]:
    """Make `seam(call, q, k, v, mask, scale, shards, group)` what our backends call.

    Args:
        handling: whether the seam has anything to do now.
    """

    def adopt(seam: Attend) -> Attend:
        _seam[:] = [(seam, handling)]
        return seam

    return adopt


def is_ours(backend: Any) -> bool:
    return isinstance(backend, str) and str.__str__(backend).startswith(PREFIX)


@functools.cache
def backend_over(previous: Any) -> AttentionBackendName:
    """The member that asks the seam first and else is `previous` (None: the active backend).

    Registered once per process; the name stays in diffusers' enumeration.
    """
    before = None if previous is None else AttentionBackendName(previous).value
    name = PREFIX if before is None else f"{PREFIX}_over_{before}"
    member = str.__new__(AttentionBackendName, name)
    member._name_, member._value_ = name.upper(), name
    vars(member)["__reduce_ex__"] = lambda protocol: (backend_over, (before,))
    AttentionBackendName._member_map_[name.upper()] = member
    AttentionBackendName._value2member_map_[name] = member

    def backend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        _parallel_config: Any = None,
    ) -> Tensor:
        if torch.compiler.is_compiling() and _parallel_config is None:
            return torch.ops.accel.attend(query, key, value, attn_mask, scale, enable_gqa, before)
        return _run(
            before,
            query,
            key,
            value,
            attn_mask,
            scale,
            enable_gqa,
            dropout_p,
            is_causal,
            _parallel_config,
        )

    supports_parallel = (
        before is None or before in _AttentionBackendRegistry._supports_context_parallel
    )
    _AttentionBackendRegistry.register(member, [], supports_parallel)(backend)
    return member


def _run(
    before: str | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    gqa: bool,
    dropout: float = 0.0,
    causal: bool = False,
    parallel: Any = None,
    shards: int = 1,
    group: Any = None,
) -> Tensor:
    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dispatch_attention_fn(
            q,
            k,
            v,
            mask,
            dropout,
            causal,
            scale,
            gqa,
            backend=None if before is None else AttentionBackendName(before),
            parallel_config=parallel,
        )

    if dropout or causal or not _seam or not _seam[0][1]():
        return call(q, k, v)
    if parallel is not None and parallel.context_parallel_config is not None:
        return _over_ranks(before, q, k, v, mask, scale, gqa, parallel)
    return _seam[0][0](call, q, k, v, mask, scale, shards, group)


def _over_ranks(
    before: str | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    gqa: bool,
    parallel: Any,
) -> Tensor:
    """The seam where every process has all tokens of some heads.

    Raises:
        ValueError: ring attention, in which a process has some of the keys at a time.
    """
    config = parallel.context_parallel_config
    if config.ring_degree > 1:
        raise ValueError(
            "attention is handled over whole sequences, and ring attention has parts of them; use "
            "ContextParallelConfig(ulysses_degree=...)"
        )

    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *_: Any, **__: Any
    ) -> Tensor:
        group = config._ulysses_mesh.get_group()
        shards = config.ulysses_degree
        return _run(before, q, k, v, mask, scale, gqa, shards=shards, group=group)

    return _templated_context_parallel_attention(
        q,
        k,
        v,
        mask,
        scale=scale,
        enable_gqa=gqa,
        forward_op=forward,
        backward_op=None,
        _parallel_config=parallel,
    )


@torch.library.custom_op("accel::attend", mutates_args=())
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    gqa: bool,
    before: str | None,
) -> Tensor:
    """The seam as one operator of a compiled graph."""
    out = _run(before, q, k, v, mask, scale, gqa)
    return out.clone(memory_format=torch.contiguous_format)


@attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    gqa: bool,
    before: str | None,
) -> Tensor:
    return q.new_empty((*q.shape[:-1], v.shape[-1]))
