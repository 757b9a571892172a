"""Sparse VideoGen 2 (2505.18875): tokens of alike meaning made neighbours by k-means."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accel.method import check_fields
from accel.token_grid import TokenGrid

from ..blocks import in_order, with_text
from ..clustering import cluster_blocks, cluster_means, first_centroids, k_means
from ..layout import BLOCKS, BlockLayout
from ..pattern import Place, Routing
from ..selection import select
from .compensation import Clusters, by_error, fill_in


@dataclass(frozen=True)
class SparseVideoGen2:
    """Queries and keys clustered per head; clusters attend to the clusters that matter to them.

    The probability of a key cluster is |K_j| exp(q_i k_j / sqrt(D)) of the means. A query cluster
    keeps the best that hold `mass` together, the crossing one included, and at least `least` of
    all. Clusters go on from where they were in the last step. Text stays outside and is dense.

    With `compensate` (SVG-EAR, 2603.08982) a key cluster left out counts as |K_j| copies of its
    mean, keys and values; with `density` the clusters kept are those whose means would do worst per
    token, measured by attending in full from a few queries of every cluster.

    Args:
        query_clusters: 300 for Wan 2.1, 400 for HunyuanVideo; at most the tokens of the video.
        key_clusters: likewise.
        mass: share of the probability to keep.
        least: least share of the key clusters to keep.
        first_rounds: rounds of k-means at first use in a run.
        rounds: rounds in every later call.
        compensate: whether clusters left out are filled in by their means.
        density: share of the video's pairs to compute, chosen by error; None chooses by `mass`.
            Needs `compensate`.
        block: most tokens of a block, 64 or 128.
    """

    query_clusters: int = 300
    key_clusters: int = 1000
    mass: float = 0.9
    least: float = 0.1
    first_rounds: int = 50
    rounds: int = 2
    compensate: bool = False
    density: float | None = None
    block: int = 128

    def __post_init__(self) -> None:
        check_fields(
            self,
            query_clusters=(self.query_clusters >= 1, "at least 1"),
            key_clusters=(self.key_clusters >= 1, "at least 1"),
            mass=(0 <= self.mass <= 1, "from 0 to 1"),
            least=(0 <= self.least <= 1, "from 0 to 1"),
            first_rounds=(self.first_rounds >= 1, "at least 1"),
            rounds=(self.rounds >= 1, "at least 1"),
            density=(
                self.density is None or (self.compensate and 0 < self.density <= 1),
                "None, or with compensate=True a share above 0",
            ),
            block=(self.block in BLOCKS, "64 or 128"),
        )

    def quick(self) -> SparseVideoGen2:
        """This with few clusters, whose layouts are of the same kind."""
        return replace(self, query_clusters=4, key_clusters=4, first_rounds=1, rounds=1)

    def route(self, q: Tensor, k: Tensor, v: Tensor, place: Place) -> Routing | None:
        grid, scale = place.grid, place.scale_of(q)
        video = slice(grid.text_first, grid.text_first + grid.video)
        query, key, value = (x[:, video].transpose(1, 2) for x in (q, k, v))
        rows = self._cluster("q", query, self.query_clusters, place)
        columns = self._cluster("k", key, self.key_clusters, place)
        shared = columns.repeated(q.shape[2] // k.shape[2])
        if self.density is None:
            kept = self.kept(rows, shared, scale)
        else:
            kept = by_error(query, key, value, rows, columns, self.density, self.block, scale)
        order_q, q_start, q_owner = self._blocks(rows, grid)
        order_k, _, _ = self._blocks(columns, grid)
        _, k_start, k_owner = self._blocks(shared, grid)
        text = in_order(grid, self.block, q.device)
        before, after = text.video.start, text.count - text.video.stop
        map = kept.gather(2, q_owner[..., None].expand(-1, -1, -1, kept.shape[-1]))
        map = map.gather(3, k_owner[:, :, None].expand(-1, -1, map.shape[2], -1))
        map = torch.nn.functional.pad(map, (before, after, before, after), value=True)
        layout = BlockLayout.from_map(
            map,
            q_start,
            k_start,
            self.block,
            self.block,
            seq_q=grid.tokens,
            seq_k=grid.tokens,
            regular=False,
            share=None if self.density is None else with_text(grid, self.density),
        )
        if not self.compensate:
            return Routing(layout, order_q, order_k)
        means = cluster_means(value, columns.labels, columns.sizes)
        means = means.repeat_interleave(q.shape[2] // k.shape[2], 1)
        tools = scale, place.merge
        fill = functools.partial(fill_in, rows, shared, means, kept, video, *tools)
        return Routing(layout, order_q, order_k, fill)

    def kept(self, rows: Clusters, columns: Clusters, scale: float) -> Tensor:
        """(B, H, QC, KC) bool by the probabilities of the means."""
        scores = rows.means @ columns.means.mT * scale + columns.sizes.log()[:, :, None]
        return select(scores.softmax(-1), mass=self.mass, keep=self.least) & (
            columns.sizes[:, :, None] > 0
        )

    def _cluster(self, name: str, x: Tensor, number: int, place: Place) -> Clusters:
        """Clusters of x (B, H, N, D), from the centroids of the last call of this run."""
        last = place.state.get(name)
        rounds = self.first_rounds if last is None else self.rounds
        if last is None:
            last = first_centroids(x, min(number, x.shape[2]), place.layer)
        labels, means, sizes = k_means(x, last, rounds)
        place.state[name] = means
        return Clusters(labels, means, sizes)

    def _blocks(self, clusters: Clusters, grid: TokenGrid) -> tuple[Tensor, Tensor, Tensor]:
        """order (B, H, S) and starts (B, H, n + 1) with the text, owner (B, H, n) of the video."""
        text = in_order(grid, self.block, clusters.labels.device).start.long()
        start, owner = cluster_blocks(clusters.sizes, self.block, grid.video)
        first, end = grid.text_first, grid.text_first + grid.video
        lead = text[: -(-first // self.block)].expand(*start.shape[:2], -1)
        tail = text[len(text) - -(-grid.text_last // self.block) :].expand(*start.shape[:2], -1)
        starts = torch.cat([lead, start + first, tail], -1)
        order = torch.arange(grid.tokens, device=start.device).repeat(*start.shape[:2], 1)
        order[..., first:end] = clusters.labels.argsort(dim=-1, stable=True) + first
        return order, starts.int(), owner
