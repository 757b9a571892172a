"""Tile sizes of the Triton kernels, by target and head size: what is compiled and what is offered.

One table. Tuning offers exactly its entries, the compile benchmark compiles exactly these, for
every type and head size, and `accel`'s choice without tuning is the first entry that fits the
blocks of a layout. The launcher pads heads to one of `HEADS` and copies what is not aligned, so
that nothing else is ever launched.
"""

from __future__ import annotations

from collections.abc import Iterator
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

HEADS = (64, 96, 128, 256)
"""Head sizes that are compiled; launches pad others to the next with zeros."""

DTYPES = ("bf16", "fp16")
"""Types of queries, keys and values that are compiled."""


@dataclass(frozen=True)
class Tiles:
    """One way to compile a kernel.

    Attributes:
        m, n: queries and keys of a tile; at most the blocks of the layout. What quantises or
            merges has rows of either, m.
        warps: warps of a program.
        stages: depth of software pipelining.
        persistent: whether programs of the forward pass take several items each.
        resident: programs that a processor holds at once by its shared memory and registers.
    """

    m: int
    n: int
    warps: int
    stages: int
    persistent: bool = True
    resident: int = 1


Table = dict[str, dict[int, tuple[Tiles, ...]]]

FORWARD: Table = {
    "sm_80": {
        64: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3, resident=2)),
        128: (Tiles(128, 32, 8, 3), Tiles(64, 32, 4, 2, resident=2)),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_89": {
        64: (Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3, resident=2)),
        128: (Tiles(128, 32, 8, 2, False), Tiles(64, 32, 4, 2, resident=2)),
        256: (Tiles(64, 32, 8, 2),),
    },
    "sm_90": {
        64: (Tiles(128, 128, 8, 3), Tiles(128, 64, 8, 3), Tiles(64, 64, 4, 3, resident=3)),
        128: (Tiles(128, 128, 8, 2, False), Tiles(128, 64, 8, 3), Tiles(64, 64, 8, 3)),
        256: (Tiles(128, 32, 8, 2, False), Tiles(64, 32, 8, 2, False)),
    },
    "sm_100": {
        64: (Tiles(128, 64, 8, 3, False), Tiles(64, 64, 8, 3, False)),
        128: (Tiles(128, 64, 8, 3, False), Tiles(64, 64, 4, 2, False)),
        256: (Tiles(64, 64, 8, 2, False),),
    },
    "gfx942": {
        64: (Tiles(128, 32, 4, 1, resident=3), Tiles(64, 32, 4, 1, resident=4)),
        128: (Tiles(128, 32, 4, 1, resident=2), Tiles(64, 32, 4, 1, resident=2)),
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
        256: (Tiles(64, 16, 8, 2),),
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
        128: (Tiles(32, 128, 8, 2), Tiles(32, 64, 8, 2)),
        256: (Tiles(32, 32, 8, 2),),
    },
    "sm_100": {
        64: (Tiles(64, 64, 8, 2),),
        128: (Tiles(64, 64, 8, 2),),
        256: (Tiles(32, 64, 8, 1),),
    },
    "gfx942": {
        64: (Tiles(32, 64, 4, 1),),
        128: (Tiles(32, 32, 4, 1),),
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
        256: (Tiles(64, 64, 8, 2, False),),
    },
    "gfx942": {
        64: (Tiles(64, 32, 4, 1, False),),
        128: (Tiles(64, 32, 4, 1, False),),
        256: (Tiles(64, 32, 4, 1, False),),
    },
}

FP8 = {target: INT8[target] for target in ("sm_89", "sm_90", "sm_100")}

QUANTISE: Table = {
    target: {
        dim: (Tiles(128, 0, 16, 1, False), Tiles(64, 0, 8, 1, False)) for dim in (64, 128, 256)
    }
    for target in SHARED_BYTES
}

MERGE: Table = {
    target: {dim: (Tiles(2048 // dim, 0, 4, 1, False),) for dim in (64, 128, 256)}
    for target in SHARED_BYTES
}

TABLES = {
    "forward": FORWARD,
    "queries": QUERIES,
    "keys": KEYS,
    "keys_fp32": KEYS,
    "sums": SUMS,
    "int8": INT8,
    "int8_fp8": FP8,
    "quantise": QUANTISE,
    "merge": MERGE,
}
"""Kernel -> its table.

`keys_fp32` is `keys` where heads share keys and parts are summed in float32; `int8_fp8` is `int8`
with values in FP8, where the target has it.
"""


@dataclass(frozen=True)
class Build:
    """One compiled kernel: everything by which two launches may differ in code."""

    kernel: str
    target: str
    head: int
    tiles: Tiles
    dtype: str


def builds() -> Iterator[Build]:
    """Everything that is ever launched on a card."""
    for kernel, table in TABLES.items():
        for target in table:
            for head in HEADS:
                for tiles in table[target][padded(head)]:
                    for dtype in DTYPES:
                        yield Build(kernel, target, head, tiles, dtype)


def compiled(head: int) -> int:
    """The head size that is launched for heads of `head` channels.

    Raises:
        ValueError: more than the largest that is compiled.
    """
    for known in HEADS:
        if head <= known:
            return known
    raise ValueError(f"kernels are compiled for heads of at most {HEADS[-1]} channels, got {head}")


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
    """Entries of the table that fit the blocks, the preferred first.

    Raises:
        ValueError: nothing is compiled for it; the message says what is.
    """
    table = TABLES[kernel]
    if target not in table:
        raise ValueError(f"{kernel} is compiled for {', '.join(table)}, not for {target}")
    entries = table[target][padded(compiled(head))]
    found = [tiles for tiles in entries if tiles.m <= block_q and tiles.n <= block_k]
    if not found:
        sizes = ", ".join(f"{tiles.m} x {tiles.n}" for tiles in entries)
        raise ValueError(
            f"{kernel} for {target} and heads of {head} is compiled in tiles of {sizes}, which do "
            f"not fit into blocks of {block_q} x {block_k}"
        )
    return found
