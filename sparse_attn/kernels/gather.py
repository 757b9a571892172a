"""Portable torch: the keys of each query block side by side, then ordinary attention."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import BlockLayout
from . import products

SMALL = 2**17
"""Bytes of keys and values up to which query blocks are computed together."""

SPLIT = 32
"""Queries that one thread of torch's attention on the CPU takes at a time."""


Run = tuple[int, int]
"""First token, and the one after the last."""


class Span(NamedTuple):
    """Queries of one head that attend to the same keys."""

    batch: int
    head: int
    queries: Run
    keys: tuple[Run, ...]

    @property
    def scores(self) -> int:
        """Pairs of a query and a key."""
        return (self.queries[1] - self.queries[0]) * sum(end - first for first, end in self.keys)


class Gather:
    """One attention per run of query blocks with the same keys.

    Float32 on the CPU is multiplied by oneDNN (see `products`), the rest goes to torch's attention.

    Neighbouring key blocks are sliced and not copied. It reads the layout on the host, once per
    layout, so it is meant for the CPU; elsewhere it runs, slowly.

    Args:
        least: scores from which queries with the same keys are multiplied by oneDNN.
    """

    unproven = "it waits for the device and was launched on CPUs alone"
    proven_on = ("cpu",)

    def __init__(self, least: int = products.LEAST) -> None:
        self.least = least
        self._spans: weakref.WeakKeyDictionary[BlockLayout, list[Span]] = (
            weakref.WeakKeyDictionary()
        )

    def why_not(self, q: Tensor, layout: BlockLayout) -> str | None:
        return None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layout: BlockLayout, scale: float
    ) -> tuple[Tensor, Tensor]:
        group = q.shape[2] // k.shape[2]
        if layout not in self._spans:
            self._spans[layout] = spans_of(layout)
        found = self._spans[layout]
        query, key, value = (t.transpose(1, 2) for t in (q, k, v))
        out = torch.zeros_like(query)
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = torch.full(query.shape[:3], -torch.inf, dtype=wide, device=q.device)
        if products.usable(q, k, v):
            large = [span for span in found if span.scores >= self.least]
            found = [span for span in found if span.scores < self.least]
            _by_products(large, query, key, value, scale, out, lse)
        if any(len(span.keys) > 1 for span in found):
            key, value = key.contiguous(), value.contiguous()
        bytes_per_key = 2 * q.shape[-1] * q.element_size()
        found, common = ([*found], []) if group > 1 else shared(found, layout, bytes_per_key)
        for run, runs in common:
            near, what = _joined(key, runs), _joined(value, runs)
            o, total = attend_densely(_narrow(query, run), near, what, scale)
            _narrow(out, run).copy_(o)
            _narrow(lse, run).copy_(total)
        queries, keys, values, outs, sums = (_by_head(t) for t in (query, key, value, out, lse))
        for spans in chunks(found, bytes_per_key):
            own = [(span.batch, span.head) for span in spans]
            theirs = [(span.batch, span.head // group) for span in spans]
            rows = _stacked(
                [_narrow(queries[at], s.queries) for at, s in zip(own, spans, strict=True)]
            )
            near, what = (
                _stacked([_joined(t[at], s.keys) for at, s in zip(theirs, spans, strict=True)])
                for t in (keys, values)
            )
            o, total = attend_densely(rows, near, what, scale)
            for i, (at, span) in enumerate(zip(own, spans, strict=True)):
                _narrow(outs[at], span.queries).copy_(o[i : i + 1])
                _narrow(sums[at], span.queries).copy_(total[i : i + 1])
        return out.transpose(1, 2), lse


def _by_products(
    spans: list[Span],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Attention of the queries in `spans`, head by head, written to `out` and `lse`."""
    group = query.shape[1] // key.shape[1]
    for (batch, head), own in itertools.groupby(spans, key=lambda s: (s.batch, s.head)):
        theirs = (batch, head // group)
        k, v = products.kept("key", key[theirs]), products.kept("value", value[theirs])
        work = products.Head(query[batch, head], k, v, scale, out[batch, head])
        for span in own:
            work.attend(span.queries, span.keys)
        lse[batch, head] = work.log_sum()


def attend_densely(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of q (B, H, L, D) to k and v (B, H, N, D), and its log-sum-exp (B, H, L)."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).mT) * scale
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype), scores.logsumexp(-1)


def spans_of(layout: BlockLayout) -> list[Span]:
    """What there is to compute, read on the host; queries that attend to nothing are left out."""
    heads = (layout.batch, layout.heads, -1)
    rows = torch.nn.functional.pad(layout.dense().to(torch.int8), (1, 1)).diff(dim=-1)
    k_start = layout.k_start.expand(heads)
    b, h, i, first = (rows == 1).nonzero(as_tuple=True)
    end = (rows == -1).nonzero(as_tuple=True)[3]
    tokens = torch.stack([b, h, i, k_start[b, h, first], k_start[b, h, end]], -1).tolist()
    q_start = layout.q_start.expand(heads).tolist()
    found: list[Span] = []
    for (batch, head, row), runs in itertools.groupby(tokens, key=lambda t: tuple(t[:3])):
        first_query, end_query = q_start[batch][head][row : row + 2]
        if first_query == end_query:
            continue
        keys = tuple(_merged((lo, hi) for *_, lo, hi in runs))
        last = found[-1] if found else None
        here = (batch, head, first_query, keys)
        if last and (last.batch, last.head, last.queries[1], last.keys) == here:
            found[-1] = last._replace(queries=(last.queries[0], end_query))
            continue
        found.append(Span(batch, head, (first_query, end_query), keys))
    return found


def _merged(runs: Iterable[Run]) -> list[Run]:
    """Runs that touch, as those around an empty block do, become one."""
    merged: list[Run] = []
    for first, end in runs:
        if merged and merged[-1][1] == first:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((first, end))
    return merged


def shared(
    spans: list[Span], layout: BlockLayout, bytes_per_key: int
) -> tuple[list[Span], list[tuple[Run, tuple[Run, ...]]]]:
    """Spans that all heads have in common, as (queries, keys), taken from the others.

    Only those whose keys need no copy, or a small one: what is copied should stay in the cache.
    """
    alike: dict[tuple[Run, tuple[Run, ...]], int] = {}
    for span in spans:
        alike[span.queries, span.keys] = alike.get((span.queries, span.keys), 0) + 1
    heads = layout.batch * layout.heads
    most = SMALL * torch.get_num_threads() // (heads * bytes_per_key)
    common = [
        (queries, keys)
        for (queries, keys), count in alike.items()
        if count == heads > 1 and (len(keys) == 1 or sum(hi - lo for lo, hi in keys) <= most)
    ]
    taken = set(common)
    return [s for s in spans if (s.queries, s.keys) not in taken], common


def chunks(spans: list[Span], bytes_per_key: int) -> Iterator[list[Span]]:
    """Spans of equal shape to compute together: few, so that their keys stay in the cache."""
    groups: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        count = sum(end - first for first, end in span.keys)
        groups.setdefault((span.queries[1] - span.queries[0], count), []).append(span)
    for (rows, count), alike in groups.items():
        busy = -(-torch.get_num_threads() * SPLIT // rows)
        size = max(1, busy, SMALL // (count * bytes_per_key))
        for first in range(0, len(alike), size):
            yield alike[first : first + size]


def _by_head(tensor: Tensor) -> dict[tuple[int, int], Tensor]:
    """(1, 1, S, ...) views of every head of a (B, H, S, ...) tensor."""
    return {
        (b, h): tensor.narrow(0, b, 1).narrow(1, h, 1)
        for b in range(tensor.shape[0])
        for h in range(tensor.shape[1])
    }


def _narrow(tokens: Tensor, run: Run) -> Tensor:
    return tokens.narrow(2, run[0], run[1] - run[0])


def _joined(tokens: Tensor, runs: tuple[Run, ...]) -> Tensor:
    """(1, 1, N, D): the tokens of all runs; a view where there is one."""
    pieces = [_narrow(tokens, run) for run in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _stacked(parts: list[Tensor]) -> Tensor:
    """(R, 1, N, D); a view of one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
