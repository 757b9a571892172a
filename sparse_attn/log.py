"""What a run of sparse attention leaves behind; tensors are read when a report is asked for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from accel.attention_record import AttentionRecord, AttentionRow
from accel.step import Step

from .layout import BlockLayout

CELLS = 192
"""Rows and columns of a map in a report, at most."""


class Log:
    """Rows of one run; nothing here waits for an accelerator until `record`."""

    def __init__(self) -> None:
        self.rows: list[tuple[Step, str, int, str, Tensor, Tensor | None]] = []
        self.maps: dict[tuple[str, int], Tensor] = {}
        self.kernels: dict[str, str] = {}
        self.spent: dict[str, list[Any]] = {"map": [], "kernel": [], "report": []}

    @contextmanager
    def timed(self, what: str, device: torch.device) -> Iterator[None]:
        """Add the time within to "map", "kernel" or "report"."""
        if device.type != "cuda":
            begin = time.perf_counter()
            yield
            self.spent[what].append(time.perf_counter() - begin)
            return
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        yield
        events[1].record()
        self.spent[what].append(events)

    def record(self) -> AttentionRecord:
        """The record of the run."""
        rows = tuple(
            AttentionRow(
                step.index,
                step.branch,
                denoiser,
                layer,
                kernel,
                tuple(density.tolist()),
                None if recall is None else tuple(recall.tolist()),
            )
            for step, denoiser, layer, kernel, density, recall in self.rows
        )
        maps = {key: cells.cpu() for key, cells in self.maps.items()}
        seconds = {what: sum(map(_seconds, spent)) for what, spent in self.spent.items()}
        return AttentionRecord(
            rows, dict(self.kernels), seconds["map"], seconds["kernel"], maps, seconds["report"]
        )


def _seconds(spent: Any) -> float:
    if isinstance(spent, float):
        return spent
    spent[1].synchronize()
    return spent[0].elapsed_time(spent[1]) / 1000


def held_bytes(value: Any) -> int:
    """Bytes of the tensors in nested containers and dataclasses; shared ones count once."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            visit(list(vars(value).values()))
        elif isinstance(value, dict | list | tuple):
            for part in value.values() if isinstance(value, dict) else value:
                visit(part)

    visit(value)
    return sum(found.values())


def cells(layout: BlockLayout) -> Tensor:
    """(H, rows, columns) float32: the map of the first sample, at most `CELLS` on a side."""
    mapped = layout.dense()[:1].float()
    size = tuple(min(n, CELLS) for n in mapped.shape[-2:])
    return torch.nn.functional.adaptive_avg_pool2d(mapped, size)[0]


def recall(q: Tensor, k: Tensor, layout: BlockLayout, scale: float, count: int) -> Tensor:
    """(H,) float32: attention mass that `layout` covers on `count` query rows spread evenly.

    Of the mass that the model itself spreads: keys in no block of the layout, which a padding mask
    hides, have none.

    Args:
        q, k: (B, S_q, H, D) and (B, S_k, H_k, D), in the order of the layout.
    """
    count = min(count, q.shape[1])
    at = torch.arange(count, device=q.device) * q.shape[1] // count
    group = q.shape[2] // k.shape[2]
    keys = k.transpose(1, 2).float().repeat_interleave(group, 1)
    scores = q[:, at].transpose(1, 2).float() @ keys.mT * scale
    key = torch.arange(k.shape[1], device=q.device)
    hidden = key >= layout.k_start[..., -1:]  # (B or 1, H or 1, S_k)
    scores = scores.masked_fill(hidden[:, :, None], -torch.inf)
    kept = layout.rows(at)
    return (scores.softmax(-1) * kept).sum(-1).mean((0, 2))
