"""Run in every process of a group: sparse attention with the sequence shared, against alone."""

import datetime
import sys

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from accel.sparse_attn import (
    AdaSpa,
    DraftAttention,
    SlidingTile,
    SpargeAttn,
    SparseAttention,
    SparseVideoGen2,
    XAttention,
)
from tests.tiny_pipelines import call, make

TILE = SlidingTile((1, 1, 1), (1, 2, 2))
LONG = {"height": 128, "width": 128, "num_frames": 29}
"""Of wan: 8 x 8 x 8 tokens."""

CASES = (
    ("wan", TILE, {}),
    ("flux", TILE, {}),
    ("flux", DraftAttention(0.4, (1, 2, 2)), {}),
    ("wan", XAttention(0.4, 8, 64), LONG),
    ("wan", SparseVideoGen2(8, 16, mass=0.5, first_rounds=3, block=64), LONG),
    ("wan", AdaSpa(0.15, search_at=(0.0, 0.5)), LONG),
    ("wan", SpargeAttn(0.5, similarity=-1.0, block_q=64), LONG),
    ("wan", DraftAttention(0.3, (1, 4, 8)), LONG),
)


def run(pipe, name, pattern, sizes):
    """Latents, and the density of every head in every row of the report."""
    method = SparseAttention(pattern, shortest=1, dense_until=0.0, recall_rows=0)
    pipe.enable_acceleration(method)
    latents = call(pipe, name, steps=3, **sizes)
    rows = pipe.acceleration.report().attention.rows
    return latents, torch.tensor([row.density for row in rows])


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it; there is none here
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=limit)
    for name, pattern, sizes in CASES:
        what = f"{name}, {pattern}"
        alone, wanted = run(make(name), name, pattern, sizes)
        pipe = make(name)
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        shared, found = run(pipe, name, pattern, sizes)
        assert wanted.mean() < 0.95, f"{what}: all but dense"
        own = wanted.chunk(2, 1)[rank]  # heads are shared out by rank
        assert torch.equal(found, own), f"{what}: off by {(found - own).abs().max()} of the pairs"
        error = float((shared - alone).abs().max() / alone.abs().max())
        assert error < 1e-4, f"{what}: off by {error:.2g} of the largest value"
        everyone = [torch.empty_like(shared) for _ in range(2)]
        dist.all_gather(everyone, shared.contiguous())
        assert torch.equal(*everyone), f"{what}: the processes disagree"
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
