"""AdaSpa (2502.21079): blocks found exactly, rarely, and sparser where a head can bear it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from accel.method import check_fields

from ..blocks import Blocks, in_order, routing, with_text
from ..layout import BLOCKS
from ..pattern import Place, Routing
from ..selection import force, select

GOOD = 0.8
"""Recall above which a head can do with fewer blocks."""


@dataclass(frozen=True)
class AdaSpa:
    """Which blocks matter hardly moves over a run: their attention is summed at a few steps.

    The first search attends in full, keeps the log-sum of every row and sums the attention of every
    block with it. Later ones sum with the kept log-sums. Steps between use the last map. Each query
    block keeps as many key blocks as any other; text is kept whole. Of the heads whose recall at
    `sparsity` is above 0.8, as many again as of the worst, the best get (1 + s) / 2 and the worst
    (3 s - 1) / 2, which leaves the mean where it was (below s = 1/3: 2 s and 0).

    Args:
        sparsity: s, share of the video's key blocks that are left out.
        search_at: fractions of the run from which on the blocks are searched (again); dense before
            the first. The paper's 10 and 30 of 50 steps. More searches did not help there.
        head_adaptive: whether heads get levels of their own.
        block: tokens of a block, 64 or 128.
    """

    sparsity: float = 0.8
    search_at: tuple[float, ...] = (0.2, 0.6)
    head_adaptive: bool = True
    block: int = 64

    def __post_init__(self) -> None:
        times = self.search_at
        check_fields(
            self,
            sparsity=(0 <= self.sparsity < 1, "at least 0, below 1"),
            search_at=(
                bool(times)
                and list(times) == sorted(set(times))
                and 0 <= times[0] <= times[-1] < 1,
                "rising fractions, from 0 to below 1",
            ),
            block=(self.block in BLOCKS, "64 or 128"),
        )

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        # 3 of 5 steps are 0.6 of the run, also where the quotient falls short by rounding
        due = sum(place.fraction >= at - 1e-9 for at in self.search_at)
        state, done = place.state, place.state.get("searches", 0)
        if not due:
            return None
        blocks = in_order(place.grid, self.block, q.device)
        shape = q.shape[0], q.shape[2]
        if not done:
            full = torch.ones(1, 1, blocks.count, blocks.count, dtype=torch.bool, device=q.device)

            def search(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor) -> Tensor:
                map = self.found(q, k, lse, blocks, place)
                state.update(lse=lse, bits=packed(map), searches=due)
                return o

            return Routing(routing(full, blocks, blocks, *shape).layout, compensate=search)
        if done < due:
            map = self.found(q, k, state["lse"], blocks, place)
            state.update(bits=packed(map), searches=due)
        share = with_text(place.grid, 1 - self.sparsity)
        return routing(unpacked(state["bits"], blocks.count), blocks, blocks, *shape, share=share)

    def found(self, q: Tensor, k: Tensor, lse: Tensor, blocks: Blocks, place: Place) -> Tensor:
        """(B, H, n, n) bool from the attention of q and k with these log-sums."""
        weights = place.sums(q, k, lse, blocks.start, blocks.start, place.scale_of(q))
        return self.chosen(weights, blocks, place.group)

    def chosen(self, weights: Tensor, blocks: Blocks, group: Any = None) -> Tensor:
        """(B, H, n, n) bool from the sums of all blocks (B, H, n, n); `group` as in `Place`."""
        video = weights[..., blocks.video, blocks.video]
        map = force(torch.zeros_like(weights, dtype=torch.bool), blocks.text, blocks.text)
        map[..., blocks.video, blocks.video] = select(video, keep=1 - self.sparsity)
        if not self.head_adaptive:
            return map
        rows = weights[..., blocks.video, :]
        kept = (rows * map[..., blocks.video, :]).sum((-2, -1))
        recall = kept / rows.sum((-2, -1))
        levels = own_heads(self.levels(all_heads(recall, group)), group)
        map[..., blocks.video, blocks.video] = select(video, keep=(1 - levels)[..., None])
        return map

    def levels(self, recall: Tensor) -> Tensor:
        """(B, H) sparsity of every head from its recall (B, H); equal ones by their number."""
        heads, s = recall.shape[-1], self.sparsity
        good = (recall > GOOD).sum(-1, keepdim=True).clamp(max=heads // 2)
        rank = recall.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        low = max((3 * s - 1) / 2, 0.0)  # the paper does not say what to do below 1 / 3
        levels = torch.where(rank < good, 2 * s - low, s)
        return torch.where(rank >= heads - good, low, levels)


def all_heads(x: Tensor, group: Any) -> Tensor:
    """(B, H of all processes) of every process's part (B, H of it); x where there is one."""
    if group is None:
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, 1)


def own_heads(x: Tensor, group: Any) -> Tensor:
    """The part of this process, of values for all heads; the inverse of `all_heads`."""
    if group is None:
        return x
    return x.chunk(dist.get_world_size(group), 1)[dist.get_rank(group)]


def packed(map: Tensor) -> Tensor:
    """(..., ceil(n / 8)) uint8: the bits of a bool map (..., n), an eighth of its memory."""
    bytes = torch.nn.functional.pad(map, (0, -map.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (bytes << torch.arange(8, device=map.device)).sum(-1).to(torch.uint8)


def unpacked(bits: Tensor, count: int) -> Tensor:
    """The bool map (..., `count`) that was `packed`."""
    places = torch.arange(8, device=bits.device)
    return ((bits[..., None] >> places) & 1).bool().flatten(-2)[..., :count]
