"""DeepCache beside the `DeepCache` package, whose branches and intervals ours are: the same bits?

    python -m benchmarks.deepcache_agreement

Needs the extra `bench`. Random tiny U-Nets shaped like Stable Diffusion and SDXL, every branch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from DeepCache import DeepCacheSDHelper

import accel
from accel.caching import DeepCache
from tests.tiny_pipelines import call, make

BRANCHES = {"sd": 12, "sdxl": 9}
INTERVALS = (2, 3, 5)
STEPS = 11
RESULT = Path(__file__).parent / "results" / "deepcache_agreement.json"


def theirs(name: str, interval: int, branch: int) -> torch.Tensor:
    """Latents with the package's helper."""
    pipe = make(name)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    return call(pipe, name, steps=STEPS)


def ours(name: str, interval: int, branch: int) -> torch.Tensor:
    """Latents with this toolkit."""
    pipe = make(name)
    with accel.accelerated(pipe, DeepCache(interval=interval, branch=branch)):
        return call(pipe, name, steps=STEPS)


def compare() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for name, branches in BRANCHES.items():
        for branch in range(branches):
            for interval in INTERVALS:
                a, b = theirs(name, interval, branch), ours(name, interval, branch)
                far = float((a - b).abs().max())
                rows.append({"unet": name, "branch": branch, "interval": interval, "far": far})
                print(f"{name} branch {branch} interval {interval}: largest difference {far:g}")
    return rows


if __name__ == "__main__":
    found = compare()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"steps": STEPS, "rows": found}, indent=1) + "\n")
