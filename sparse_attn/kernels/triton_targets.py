"""Tile sizes of the Triton kernels, by target and head size: what is compiled and what is offered.

One table. Tuning offers exactly its entries, the compile benchmark compiles exactly these, and
`accel`'s choice without tuning is the first entry that fits the blocks of a layout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHARED_BYTES = {
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}
"""Most shared memory of a program, by target."""

HEADS = (64, 128, 256)
"""Columns of tiles that are compiled ahead; other head sizes are padded to the next."""


@dataclass(frozen=True)
class Tiles:
    """One way to compile a kernel.

    Attributes:
        m, n: queries and keys of a tile; at most the blocks of the layout.
        warps: warps of a program.
        stages: depth of software pipelining.
        persistent: whether programs of the forward pass take several items each.
    """

    m: int
    n: int
    warps: int
    stages: int
    persistent: bool = True


Table = dict[str, dict[int, tuple[Tiles, ...]]]

FORWARD: Table = {
    "sm_80": {
        64: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3)),
        128: (Tiles(128, 32, 8, 3), Tiles(64, 32, 4, 2)),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_89": {
        64: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3)),
        128: (Tiles(128, 32, 8, 2, False), Tiles(64, 32, 4, 2)),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_90": {
        64: (Tiles(128, 128, 8, 3), Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3)),
        128: (Tiles(128, 128, 8, 2, False), Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3)),
        256: (Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2)),
    },
    "sm_100": {
        64: (Tiles(128, 64, 8, 3, False), Tiles(64, 64, 4, 3, False)),
        128: (Tiles(128, 64, 8, 3, False), Tiles(64, 64, 4, 2, False)),
        256: (Tiles(64, 64, 8, 2, False),),
    },
    "gfx942": {
        64: (Tiles(128, 32, 4, 1), Tiles(64, 32, 4, 1)),
        128: (Tiles(128, 32, 4, 1), Tiles(64, 32, 4, 1)),
        256: (Tiles(64, 32, 4, 1),),
    },
}

QUERIES: Table = {
    "sm_80": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(64, 32, 8, 2),),
        256: (Tiles(32, 32, 8, 1),),
    },
    "sm_89": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(64, 32, 8, 2),),
        256: (Tiles(32, 32, 4, 1),),
    },
    "sm_90": {
        64: (Tiles(64, 64, 4, 3),),
        128: (Tiles(128, 64, 8, 2), Tiles(64, 64, 8, 2)),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_100": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(64, 64, 8, 2),),
        256: (Tiles(64, 32, 8, 2),),
    },
    "gfx942": {
        64: (Tiles(64, 32, 4, 1),),
        128: (Tiles(64, 32, 8, 1),),
        256: (Tiles(32, 32, 4, 1),),
    },
}

KEYS: Table = {
    "sm_80": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(32, 64, 8, 2),),
        256: (Tiles(32, 32, 8, 1),),
    },
    "sm_89": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(32, 64, 8, 1),),
        256: (Tiles(32, 32, 8, 1),),
    },
    "sm_90": {
        64: (Tiles(64, 64, 4, 2),),
        128: (Tiles(64, 64, 8, 2), Tiles(32, 64, 4, 2)),
        256: (Tiles(32, 32, 8, 2),),
    },
    "sm_100": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(64, 64, 8, 2),),
        256: (Tiles(32, 64, 8, 1),),
    },
    "gfx942": {
        64: (Tiles(32, 64, 4, 1),),
        128: (Tiles(32, 64, 8, 1),),
        256: (Tiles(16, 32, 4, 1),),
    },
}

SUMS: Table = {
    "sm_80": {
        64: (Tiles(64, 64, 4, 3),),
        128: (Tiles(64, 64, 8, 2),),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_89": {
        64: (Tiles(64, 64, 4, 3),),
        128: (Tiles(64, 64, 8, 2),),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_90": {
        64: (Tiles(128, 64, 8, 3),),
        128: (Tiles(128, 64, 8, 3),),
        256: (Tiles(64, 64, 8, 2),),
    },
    "sm_100": {
        64: (Tiles(128, 64, 8, 2),),
        128: (Tiles(128, 64, 8, 2),),
        256: (Tiles(64, 64, 8, 2),),
    },
    "gfx942": {
        64: (Tiles(64, 32, 4, 1),),
        128: (Tiles(64, 32, 4, 1),),
        256: (Tiles(64, 32, 4, 1),),
    },
}

INT8: Table = {
    "sm_80": {
        64: (Tiles(64, 64, 4, 2, False),),
        128: (Tiles(64, 32, 4, 2, False),),
        256: (Tiles(64, 32, 8, 2, False),),
    },
    "sm_89": {
        64: (Tiles(64, 64, 4, 2, False),),
        128: (Tiles(64, 32, 4, 2, False),),
        256: (Tiles(64, 32, 8, 2, False),),
    },
    "sm_90": {
        64: (Tiles(128, 64, 8, 3, False), Tiles(64, 64, 4, 3, False)),
        128: (Tiles(128, 64, 8, 3, False), Tiles(64, 64, 4, 3, False)),
        256: (Tiles(64, 64, 8, 2, False),),
    },
    "sm_100": {
        64: (Tiles(64, 64, 4, 2, False),),
        128: (Tiles(64, 64, 4, 2, False),),
        256: (Tiles(64, 32, 8, 2, False),),
    },
    "gfx942": {
        64: (Tiles(64, 32, 4, 1, False),),
        128: (Tiles(64, 32, 4, 1, False),),
        256: (Tiles(64, 32, 4, 1, False),),
    },
}

TABLES = {
    "forward": FORWARD,
    "queries": QUERIES,
    "keys": KEYS,
    "sums": SUMS,
    "int8": INT8,
}
"""Kernel -> its table."""


def padded(head: int) -> int:
    """Columns of a tile for heads of that size: 64, 128 or 256."""
    return 64 if head <= 64 else 128 if head <= 128 else 256


def descriptors(target: str) -> bool:
    """Whether the target copies tiles by tensor descriptors."""
    return target in ("sm_90", "sm_100")


def target_of(device: torch.device) -> str | None:
    """The row of the table for a device, None where there is none."""
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
        return name if name in SHARED_BYTES else None
    major, minor = torch.cuda.get_device_capability(device)
    rows = {8: "sm_80" if minor == 0 else "sm_89", 9: "sm_90", 10: "sm_100", 12: "sm_89"}
    return rows.get(major)


def offered(kernel: str, target: str, head: int, block_q: int, block_k: int) -> list[Tiles]:
    """Entries of the table that fit the blocks, the preferred first."""
    entries = TABLES[kernel][target][padded(head)]
    return [tiles for tiles in entries if tiles.m <= block_q and tiles.n <= block_k]
