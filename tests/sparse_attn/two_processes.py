"""Run in every process of a group: sparse attention with the sequence shared, against alone."""

import datetime
import sys

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig

from accel.sparse_attn import SlidingTile, SparseAttention
from tests.tiny_pipelines import call, make


def main(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it; there is none here
    limit = datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=limit)
    for name, sizes in (("wan", {}), ("flux", {})):
        method = SparseAttention(SlidingTile((1, 1, 1), (1, 2, 2)), shortest=1, dense_until=0.5)
        pipe = make(name)
        pipe.enable_acceleration(method)
        alone = call(pipe, name, steps=2, **sizes)
        densities = pipe.acceleration.report().attention.by("index")
        pipe = make(name)
        pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
        pipe.enable_acceleration(method)
        shared = call(pipe, name, steps=2, **sizes)
        error = float((shared - alone).abs().max() / alone.abs().max())
        assert error < 1e-4, f"{name}: off by {error:.2g} of the largest value"
        assert pipe.acceleration.report().attention.by("index") == densities, name
        everyone = [torch.empty_like(shared) for _ in range(2)]
        dist.all_gather(everyone, shared.contiguous())
        assert torch.equal(*everyone), f"{name}: the processes disagree"
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
