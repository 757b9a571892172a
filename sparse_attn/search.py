"""Scores a pipeline against its own output with dense attention, for layer-wise searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

import accel

from .method import SparseAttention
from .patterns.attention_tile import AttentionTile


def output_loss(
    pipe: Any, generate: Callable[[], Tensor], method: SparseAttention | None = None
) -> Callable[[Sequence[int]], float]:
    """A loss for `search_references`: how far a pipeline's output is from that of dense attention.

    1 + |x - dense|^2 / |dense|^2 of the sums of squares, so that the threshold of the search is the
    share of the dense output's energy that one layer may change. The paper takes the training loss,
    which needs its data; this needs nothing but prompts. A call of the loss costs a run.

    Args:
        pipe: the pipeline; what is enabled on it is put aside for each run, and is back after it.
        generate: runs `pipe` and returns its latents or frames; the same at every call, so it seeds
            its noise itself.
        method: other settings, with an `AttentionTile` whose number of references is replaced;
            by default all steps are sparse.

    Returns:
        The loss of so many references in every layer of the denoiser; 1 where all are dense, as are
        numbers from that of the frames on.

    Raises:
        ValueError: another pattern, or outputs that are not the same twice.
    """
    method = method or SparseAttention(AttentionTile(), dense_until=0.0, recall_rows=0)
    pattern = method.pattern
    if not isinstance(pattern, AttentionTile):
        raise ValueError(f"references are searched for AttentionTile, got {pattern!r}")
    with accel.accelerated(pipe, accel.Plan(())):
        dense, again = generate().double(), generate().double()
    if not dense.equal(again):
        raise ValueError("generate() must return the same twice; seed its noise in it")
    scale = dense.square().sum()

    def loss(references: Sequence[int]) -> float:
        tile = replace(pattern, reference=tuple(references), at=None)
        with accel.accelerated(pipe, replace(method, pattern=tile)):
            out = generate().double()
        return 1 + float((out - dense).square().sum() / scale)

    return loss
