"""GS-Jacobi: causal autoregressive flows are inverted many positions at a time.

A block of such a flow (TarFlow) turns x into z = (x - u) exp(-s), where s and u at a position come
from the positions before it. Its inverse, x = z exp(s) + u, is taken one position after the other,
or here by iterating on whole chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


class CausalBlock(Protocol):
    """One block of a causal autoregressive flow, over tokens (B, T, C)."""

    def extend(
        self, before: Tensor | None, tokens: Tensor, cache: Any
    ) -> tuple[Tensor, Tensor, Any]:
        """Scale s and shift u (B, n, C) of `tokens` (B, n, C), and what the next ones need.

        Args:
            before: (B, 1, C) the token before them; None where they are the first, whose own s and
                u are 0.
            tokens: all but the last are looked at.
            cache: what an earlier call returned for the tokens before; None for none.
        """
        ...


@dataclass(frozen=True)
class Inversion:
    """How one block is inverted (GS-Jacobi, arXiv 2505.12849).

    Attributes:
        chunks: the sequence is cut into as many, one after the other (Gauss-Seidel); within a chunk
            all positions are iterated on together (Jacobi). As many as positions is sequential.
        iterations: at most as many in a chunk; a chunk of n positions is exact after n.
        start: a chunk begins from "z" itself, or from "zero".
        tolerance: a chunk is done where an iteration moves it by less, in root mean square.
        clamp: bounds of x while it is iterated on, which keep a bad start from overflowing; data
            outside of them cannot be reached. None for none.

    Raises:
        ValueError: a number out of range, or an unknown start.
    """

    chunks: int = 1
    iterations: int = 1_000_000
    start: str = "z"
    tolerance: float = 1e-4
    clamp: float | None = 3.0

    def __post_init__(self) -> None:
        for name, right in (
            ("chunks must be 1 or more", self.chunks >= 1),
            ("iterations must be 1 or more", self.iterations >= 1),
            ("start must be z or zero", self.start in ("z", "zero")),
            ("tolerance must be 0 or more", self.tolerance >= 0),
            ("clamp must be above 0, or None", self.clamp is None or self.clamp > 0),
        ):
            if not right:
                raise ValueError(f"Inversion: {name}, got {self}")


SEQUENTIAL = Inversion(chunks=1_000_000, clamp=None)
"""One position after the other."""


@dataclass
class Work:
    """What an inversion took.

    Attributes:
        passes: evaluations of a block, one after another.
        positions: positions evaluated, over all passes.
    """

    passes: int = 0
    positions: int = 0
    by_chunk: list[int] = field(default_factory=list)


@torch.no_grad()
def invert(block: CausalBlock, z: Tensor, how: Inversion, work: Work | None = None) -> Tensor:
    """x (B, T, C) such that the block makes z of it.

    Keys and values of finished chunks are kept, not computed again. All arithmetic should be in 32
    bits: in bfloat16 the iteration stalls above any tolerance of use.

    Raises:
        FloatingPointError: the iteration overflowed; clamp it, or cut it into more chunks.
    """
    count = z.shape[1]
    work = work if work is not None else Work()
    x = z.clone() if how.start == "z" else torch.zeros_like(z)
    x[:, 0] = z[:, 0]
    cache: Any = None
    edges = [round(i * count / min(how.chunks, count)) for i in range(min(how.chunks, count) + 1)]
    for start, end in itertools.pairwise(edges):
        before = x[:, start - 1 : start] if start else None
        target, tokens = z[:, start:end], x[:, start:end]
        passes, ahead = min(how.iterations, end - start), cache
        begun = work.passes
        for _ in range(passes):
            scale, shift, ahead = block.extend(before, tokens, cache)
            fresh = target * scale.exp() + shift
            if how.clamp is not None:
                fresh = fresh.clamp(-how.clamp, how.clamp)
            moved = float((fresh - tokens).square().mean().sqrt())
            tokens = fresh
            work.passes += 1
            work.positions += end - start
            if moved != moved or moved == float("inf"):
                raise FloatingPointError(
                    f"the iteration of positions {start} to {end} overflowed; give clamp, such as "
                    f"3.0, or more chunks than {how.chunks}"
                )
            if moved <= how.tolerance:
                break
        work.by_chunk.append(work.passes - begun)
        x[:, start:end], cache = tokens, ahead
    return x


def sample(
    blocks: Sequence[CausalBlock],
    z: Tensor,
    plan: Sequence[Inversion],
    backward: Sequence[bool] | None = None,
) -> tuple[Tensor, list[Work]]:
    """x (B, T, C) that the flow makes noise z of, and what every block took.

    Args:
        blocks: in the order in which samples pass them, from the noise on.
        plan: how each is inverted, as `planned` finds it.
        backward: of each block, whether it takes the positions from the last to the first.

    Raises:
        ValueError: `plan` or `backward` has not one entry a block.
        FloatingPointError: as :func:`invert`.
    """
    turned, spent = _turned(blocks, backward), []
    if len(plan) != len(blocks):
        raise ValueError(f"plan has {len(plan)} entries for {len(blocks)} blocks; one each")
    for block, how, turn in zip(blocks, plan, turned, strict=True):
        work = Work()
        x = invert(block, z.flip(1) if turn else z, how, work)
        z = x.flip(1) if turn else x
        spent.append(work)
    return z, spent


def _turned(blocks: Sequence[CausalBlock], backward: Sequence[bool] | None) -> Sequence[bool]:
    turned = [False] * len(blocks) if backward is None else backward
    if len(turned) != len(blocks):
        raise ValueError(f"backward has {len(turned)} entries for {len(blocks)} blocks; one each")
    return turned


def planned(
    blocks: Sequence[CausalBlock],
    z: Tensor,
    chunks: int = 4,
    tolerance: float = 1e-4,
    clamp: float | None = 3.0,
    backward: Sequence[bool] | None = None,
) -> list[Inversion]:
    """How each block is best inverted, in the order in which samples pass them, from noise z.

    The start of a block is the one that a first iteration moves less. The block that takes most
    iterations is the tough one, and gets `chunks`. (The paper ranks blocks by a bound made of their
    weights, which estimates the same.)

    Args:
        backward: of each block, whether it takes the positions from the last to the first.
    """
    found, tough, most = [], 0, 0
    turned = _turned(blocks, backward)
    for i, block in enumerate(blocks):
        z = z.flip(1) if turned[i] else z
        moved = {s: _first_move(block, z, s) for s in ("z", "zero")}
        best = Inversion(
            1, start=min(moved, key=moved.__getitem__), tolerance=tolerance, clamp=clamp
        )
        work = Work()
        z = invert(block, z, best, work)
        z = z.flip(1) if turned[i] else z
        found.append(best)
        if work.passes > most:
            tough, most = i, work.passes
    hard = found[tough]
    found[tough] = Inversion(chunks, start=hard.start, tolerance=tolerance, clamp=clamp)
    return found


@torch.no_grad()
def _first_move(block: CausalBlock, z: Tensor, start: str) -> float:
    """How far one iteration moves a start, in root mean square (the paper's IGM)."""
    x = z.clone() if start == "z" else torch.zeros_like(z)
    x[:, 0] = z[:, 0]
    scale, shift, _ = block.extend(None, x, None)
    return float((z * scale.exp() + shift - x).square().mean().sqrt())
