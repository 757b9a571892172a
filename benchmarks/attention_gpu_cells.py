"""The single measurements of `attention_gpu`, made in a process that may be lost to one of them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from accel.load import first_line
from accel.sparse_attn.kernels import KERNELS
from accel.sparse_attn.kernels.flex import Flex
from accel.sparse_attn.kernels.triton_launch import TUNED, block_sum, tune
from accel.sparse_attn.kernels.triton_targets import Tiles
from accel.sparse_attn.layout import BlockLayout, uniform
from accel.sparse_attn.ordered import attend_routed
from accel.sparse_attn.pattern import Place, Routing
from accel.sparse_attn.patterns import AdaSpa
from benchmarks.attention_ways import (
    BLOCK,
    EXACT,
    LOSSY,
    Attention,
    Shape,
    builders,
    clock,
    dense,
    error,
    over,
    parse,
    random_layout,
)
from benchmarks.isolated import BROKEN

DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.05)
RUN = 40
"""Sparse steps of a run that maps are kept for: 50, of which the first fifth is dense."""
TUNABLE = {"triton": "forward", "triton_int8": "int8"}
"""Kernels with more than one entry in the table of tile sizes, and its name there."""

Remembered = list[tuple[list[Any], dict[str, Any]]]
"""Keys and entries of `TUNED`, ready for JSON."""


class Job(NamedTuple):
    """One measurement of a shape: which part of the benchmark, what, and at which density."""

    part: str
    way: str
    density: float = 1.0


def jobs(shape: Shape, kind: str) -> list[Job]:
    """All measurements of a shape on a device of `kind`; what compiles for long comes last."""
    found = [Job("dense", way) for way in (*EXACT, *LOSSY) if way != "flex"]
    tuned = [Job("tuning", way) for way in TUNABLE] if kind == "cuda" else []
    found += tuned[:1]
    found += [Job("sparse", "triton", density) for density in DENSITIES]
    found += [Job("search", "block_sum")]
    found += [Job("builder", name, 0.0) for name in builders(shape)]
    found += tuned[1:]
    for kernel in ("triton_int8", "triton_int8_fp8"):
        found += [Job("sparse", kernel, density) for density in (1.0, 0.1)]
    found += [Job("dense", "flex")]
    return found + [Job("sparse", "flex", density) for density in DENSITIES]


class Bench:
    """One shape on one device, `cuda` or `cpu`."""

    def __init__(self, shape: Shape, kind: str) -> None:
        self.shape, self.kind = shape, kind
        self.qkv = shape.qkv(kind, torch.bfloat16 if kind == "cuda" else torch.float16)

    def __call__(self, question: tuple[tuple[str, str, float], Remembered]) -> dict[str, Any]:
        """The result of a job, or {"failed": reason}, with tiles as tuned before."""
        job = Job(*question[0])
        remember(question[1])
        try:
            result = self.work(job)
            odd = [k for k, v in result.items() if isinstance(v, float) and not math.isfinite(v)]
            if odd:
                raise ValueError(f"its {odd[0]} is {result[odd[0]]}")
            return result
        except Exception as failure:  # a kernel that this card does not run may raise anything
            result = {"failed": first_line(failure)}
        if not usable(self.kind):
            return {**result, BROKEN: True}
        if self.kind == "cuda":
            torch.cuda.empty_cache()
        return result

    def work(self, job: Job) -> dict[str, Any]:
        if job.part == "dense":
            return self.timed(dense(job.way, self.qkv[0]), None)
        if job.part == "tuning":
            return self.tuned(job.way)
        if job.part == "sparse":
            return self.sparse(job.way, job.density)
        return self.searched() if job.part == "search" else self.built(job.way)

    def timed(self, attention: Attention, layout: BlockLayout | None) -> dict[str, Any]:
        """Time, error, density by tokens and TFLOP/s of what is computed."""
        out = attention(*self.qkv)
        found: dict[str, Any] = clock(lambda: attention(*self.qkv), self.kind)
        share = 1.0 if layout is None else float(layout.density())
        pairs = share * self.shape.heads * self.shape.tokens**2
        found["tflops"] = 4 * self.shape.head * pairs / found["ms"] / 1e9
        found["computed"] = share
        found["error"] = error(out, *self.qkv, layout)
        return found

    def sparse(self, kernel: str, density: float) -> dict[str, Any]:
        layout = random_layout(self.qkv[0], density, BLOCK)
        if kernel == "flex" and self.kind == "cpu":
            flex, scale = Flex(compiled=False), self.shape.head**-0.5
            return self.timed(lambda q, k, v: flex.attend(q, k, v, layout, scale)[0], layout)
        if reason := KERNELS[kernel].why_not(self.qkv[0], layout):
            raise ValueError(reason)
        return self.timed(over(kernel, layout), layout)

    def tuned(self, way: str) -> dict[str, Any]:
        """Every entry of the table of tile sizes over the full map; the fastest is used after."""
        layout = random_layout(self.qkv[0], 1.0, BLOCK)
        attention, kernel = over(way, layout), TUNABLE[way]
        try:
            found = tune(kernel, self.qkv[0], BLOCK, BLOCK, lambda: attention(*self.qkv))
        except Exception:
            for key in [k for k in TUNED if k[0] == kernel]:
                del TUNED[key]  # the entry it failed at
            raise
        times = {str(tiles): ms for tiles, ms in found.items()}
        kept = [noted(*entry) for entry in TUNED.items() if entry[0][0] == kernel]
        return {"tuned": kept, "ms": times}

    def searched(self) -> dict[str, Any]:
        """AdaSpa's search given the log-sums: about half a dense attention."""
        q, k, _ = self.qkv
        starts, scale = uniform(self.shape.tokens, BLOCK, self.kind), self.shape.head**-0.5
        layout = random_layout(q, 1.0, BLOCK)
        lse = KERNELS["triton"].attend(*self.qkv, layout, scale)[1]

        def search() -> torch.Tensor:
            return block_sum(q, k, lse, starts, starts, scale)

        found: dict[str, Any] = clock(search, self.kind)
        found["error"] = float((search().sum(-1) / starts.diff() - 1).abs().max())
        return found

    def built(self, name: str) -> dict[str, Any]:
        """Milliseconds of a map, as a mean over a run, and of the attention over it in its order.

        `first_ms` is of a run's first map and `later_ms` of those after; AdaSpa searches twice.
        """
        pattern = builders(self.shape)[name]

        def route(place: Place) -> Routing:
            routing = pattern.route(*self.qkv, place)
            if routing is None:
                raise ValueError("it asks for dense attention here")
            return routing

        place, firsts = self.shape.place(), 1
        routing = route(place)
        if reason := KERNELS["triton"].why_not(self.qkv[0], routing.layout):
            raise ValueError(reason)

        def first() -> object:
            return route(self.shape.place())

        if isinstance(pattern, AdaSpa):
            q, search, firsts = self.qkv[0], routing.compensate, len(pattern.search_at)
            lse = KERNELS["triton"].attend(*self.qkv, routing.layout, q.shape[-1] ** -0.5)[1]

            def first() -> object:
                assert search is not None
                return search(*self.qkv, q, lse)

        first_ms = clock(first, self.kind, 0.0, 1)["ms"]
        later_ms = clock(lambda: route(place), self.kind)["ms"]
        routing = route(place)
        found = clock(lambda: attend_routed(KERNELS["triton"], routing, *self.qkv), self.kind)
        return {
            **found,
            "building_ms": (firsts * first_ms + (RUN - firsts) * later_ms) / RUN,
            "first_ms": first_ms,
            "later_ms": later_ms,
            "computed": float(routing.layout.density()),
        }


def noted(key: tuple[Any, ...], tiles: Tiles) -> tuple[list[Any], dict[str, Any]]:
    """An entry of `TUNED` for `remember`; JSON has no dtypes."""
    names = [str(p).removeprefix("torch.") if isinstance(p, torch.dtype) else p for p in key]
    return names, asdict(tiles)


def remember(tuned: Remembered) -> None:
    """Use these tiles from now on; an earlier process may have found them."""
    for (*before, dtype, block_q, block_k), tiles in tuned:
        TUNED[(*before, getattr(torch, dtype), block_q, block_k)] = Tiles(**tiles)


def usable(kind: str) -> bool:
    """Whether the card still computes for this process after a failure."""
    if kind == "cuda":
        try:
            torch.zeros(1, device="cuda").add_(1).item()
            torch.cuda.synchronize()
        except Exception:  # of any kind, since the driver decides
            return False
    return True


def serve(shape: str, kind: str) -> Bench:
    """What the other process answers with."""
    return Bench(parse(shape), kind)
