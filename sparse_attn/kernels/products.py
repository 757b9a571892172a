"""Attention of one head on the CPU by oneDNN's matrix products, a tile of scores at a time.

torch's own attention on the CPU multiplies with MKL, in tiles of 32 queries where there are few;
MKL does not use the wide vectors of every processor, oneDNN does.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

ROWS, KEYS = 128, 1024
"""Queries and keys of a tile: 512 KiB of scores, and of keys and values, to stay in the cache."""

LEAST = 2**15
"""Scores below which the calls of the operators take longer than the work."""

Run = tuple[int, int]

_kept = threading.local()


def usable(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Float32 on the CPU without gradients, in a torch that has oneDNN and uses it."""
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype == torch.float32
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)))
        and torch._C._get_mkldnn_enabled()
        and _works()
    )


@functools.cache
def _works() -> bool:
    """Whether torch has the operator, by a small product."""
    a, b = torch.arange(72.0).view(8, 9), torch.arange(81.0).view(9, 9)
    try:
        return torch.equal(product(a, b), a @ b.mT)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times b (N, K) transposed; b or its transpose is contiguous."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], "")
    return found


def kept(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy of `tensor` where the last of that name and size was, in each thread.

    At a tenth of the blocks, asking the system for fresh memory is a tenth of the time.
    """
    space: Tensor | None = getattr(_kept, name, None)
    if space is None or space.shape != tensor.shape:
        with torch.inference_mode(False):
            space = torch.empty(tensor.shape)
        setattr(_kept, name, space)
    return space.copy_(tensor)


class Head:
    """Attention of one head, its queries a run at a time.

    Args:
        q: (S_q, D).
        k, v: (S_k, D) and (S_k, D_v), both contiguous: with other strides the operator is hundreds
            of times slower.
        out: (S_q, D_v), written to.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
        self.q, self.k, self.v, self.out = q, k, v, out
        self.factor = scale / math.log(2)
        self.top = q.new_full((len(q), 1), -torch.inf)
        self.total = q.new_zeros((len(q), 1))

    def attend(self, queries: Run, runs: tuple[Run, ...]) -> None:
        """Let `queries`, which did not attend to anything yet, attend to the keys of `runs`."""
        tiles = [(at, min(ROWS, queries[1] - at)) for at in range(*queries, ROWS)]
        sums: list[Tensor | None] = [None] * len(tiles)
        for part in parts(runs):
            key, value = joined(self.k, part), joined(self.v, part).mT
            sums = [self._add(*t, key, value, s) for t, s in zip(tiles, sums, strict=True)]
        for (at, count), sum in zip(tiles, sums, strict=True):
            torch.div(sum, self.total.narrow(0, at, count), out=self.out.narrow(0, at, count))

    def _add(self, at: int, count: int, key: Tensor, value: Tensor, sum: Tensor | None) -> Tensor:
        """The weighted values so far, relative to the highest score; scores are powers of 2."""
        top, total = self.top.narrow(0, at, count), self.total.narrow(0, at, count)
        scores = product(self.q.narrow(0, at, count) * self.factor, key)
        if sum is None:
            torch.amax(scores, 1, keepdim=True, out=top)
            weights = scores.sub_(top).exp2_()
            torch.sum(weights, 1, keepdim=True, out=total)
            return product(weights, value)
        higher = torch.maximum(top, scores.amax(1, keepdim=True))
        weights = scores.sub_(higher).exp2_()
        fade = (top - higher).exp2_()
        total.mul_(fade).add_(weights.sum(1, keepdim=True))
        top.copy_(higher)
        return product(weights, value).addcmul_(sum, fade)

    def log_sum(self) -> Tensor:
        """(S_q,) natural log of the sum of exponentials; -inf where there were no keys."""
        return self.total.log2_().add_(self.top)[:, 0].mul_(math.log(2))


def parts(runs: tuple[Run, ...]) -> Iterator[list[Run]]:
    """The same tokens, at most `KEYS` at a time."""
    part: list[Run] = []
    room = KEYS
    for first, end in runs:
        while first < end:
            stop = min(end, first + room)
            part.append((first, stop))
            room -= stop - first
            first = stop
            if room == 0:
                yield part
                part, room = [], KEYS
    if part:
        yield part


def joined(tokens: Tensor, runs: list[Run]) -> Tensor:
    """The tokens of all runs, a view of one."""
    pieces = [tokens[first:end] for first, end in runs]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
