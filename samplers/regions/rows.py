"""Some rows of a sequence: taken out, put back, and their rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def across(index: Tensor, rows: int, samples: Sequence[int] | None = None) -> Tensor:
    """Indices (N, k) of samples for `rows` of a batch that holds the samples m = rows / N times.

    A guided batch has all samples without their prompt, then all with it. (1, k) is for any batch.

    Args:
        samples: those the batch has; None for all.

    Raises:
        RuntimeError: the batch has some of the samples, and nothing tells which.
    """
    if len(index) == 1:
        return index
    if samples is not None:
        index = index[list(samples)]
    copies, rest = divmod(rows, len(index))
    if rest or not copies:
        raise RuntimeError(
            f"a batch of {rows} is not one of the {len(index)} samples of this run, so that their "
            f"tokens cannot be told; disable what evaluates some samples only"
        )
    return index.repeat(copies, 1)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B or 1, k) of `values` (B, S, ...): (B, k, ...)."""
    if len(index) == 1:
        return values.index_select(1, index[0])
    if len(values) == 1:
        values = values.expand(len(index), *values.shape[1:])
    taken = values.flatten(0, 1).index_select(0, flat(index, values.shape[1]))
    return taken.unflatten(0, tuple(index.shape))


def put(values: Tensor, index: Tensor, rows: Tensor) -> None:
    """Write `rows` (B, k, ...) into contiguous `values` (B, S, ...) at `index` (B or 1, k)."""
    if len(index) == 1:
        values.index_copy_(1, index[0], rows)
    else:
        values.flatten(0, 1).index_copy_(0, flat(index, values.shape[1]), rows.flatten(0, 1))


def flat(index: Tensor, length: int) -> Tensor:
    """Rows (B, k) of sequences of one length as rows of the sequences laid end to end."""
    starts = torch.arange(len(index), device=index.device) * length
    return (index + starts[:, None]).flatten()


def turned(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs: values (B, S, H, D), cos and sin (B, S, D)."""
    first, second = values.unflatten(-1, (-1, 2)).unbind(-1)
    quarter = torch.stack([-second, first], dim=-1).flatten(3)
    out = values.float() * cos[:, :, None] + quarter.float() * sin[:, :, None]
    return out.to(values.dtype)
