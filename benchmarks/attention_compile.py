"""Do the Triton attention kernels compile for cards that are not here, and do they fit?

`python -m benchmarks.attention_compile` compiles every entry of the table of tile sizes for every
target, goes on where it stopped and writes results/attention_compile.{json,md}. No GPU is needed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from accel.sparse_attn.kernels.triton_targets import (
    HEADS,
    SHARED_BYTES,
    TABLES,
    Tiles,
    descriptors,
    padded,
)
from benchmarks.cells import Cells

RESULTS = Path(__file__).parent / "results" / "attention_compile.json"
FUNCTIONS = {
    "forward": ("triton_attention", "attention_forward"),
    "queries": ("triton_backward", "gradient_queries"),
    "keys": ("triton_backward", "gradient_keys"),
    "sums": ("triton_attention", "block_sums"),
    "int8": ("triton_int8", "quantised_forward"),
}
DESCRIBED = {  # what a kernel reads through descriptors, and whose tile that is
    "forward": {"k": "n", "v": "n"},
    "queries": {"k": "n", "v": "n"},
    "keys": {"q": "m", "do": "m"},
    "sums": {"k": "n"},
    "int8": {"k": "n", "v": "n"},
}
WITHOUT_WGMMA = {("keys", 256)}
"""Kernels and head sizes whose sums fill the registers at the 64 rows that wgmma needs."""
PACKAGE = "accel.sparse_attn.kernels"


def offers() -> list[dict[str, Any]]:
    """Everything to compile: kernel, target, head size and tiles."""
    return [
        {"kernel": kernel, "target": target, "head": head, "tiles": list(vars(tiles).values())}
        for kernel, table in TABLES.items()
        for target in table
        for head in (*HEADS, *((96,) if kernel == "forward" else ()))
        for tiles in table[target][padded(head)]
    ]


def fingerprint(kernel: str) -> str:
    """Of the source of a kernel and of what it calls."""
    names = {FUNCTIONS[kernel][0], "triton_attention"}
    files = [Path(inspect.getfile(importlib.import_module(f"{PACKAGE}.{n}"))) for n in names]
    text = "".join(ast.dump(ast.parse(path.read_text())) for path in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prune(path: Path) -> None:
    """Drop what is no longer on offer, or was compiled from other sources, from the results."""
    if not path.exists():
        return
    content = json.loads(path.read_text())
    valid = [{**offer, "source": fingerprint(offer["kernel"])} for offer in offers()]
    cells = {key: c for key, c in content["cells"].items() if c["fields"] in valid}
    path.write_text(json.dumps({**content, "cells": cells}, indent=1) + "\n")


def compile_one(
    kernel: str, target: str, head: int, tiles: list[int], dtype: str = "bf16"
) -> dict[str, Any]:
    """Compile one kernel for one target, and read what it takes off the result.

    Returns:
        shared: bytes of shared memory; spills: bytes of registers kept in memory; matrix: how many
        instructions of the target's matrix unit; copies: of its tensor copy engine.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = FUNCTIONS[kernel]
    function = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    entry, tma = Tiles(*tiles), descriptors(target)
    constants = constexprs(function.arg_names, target, head, entry)
    signature, attributes = {}, {}
    for at, argument in enumerate(function.arg_names):
        kind = _kind(kernel, argument, dtype, constants)
        if tma and argument in DESCRIBED[kernel]:
            rows = getattr(entry, DESCRIBED[kernel][argument])
            kind = f"tensordesc<{kind[1:]}[1,{rows},1,{padded(head)}]>"
        signature[argument] = kind
        if kind.startswith("*") or re.search("_stride_[bsh]$", argument):
            attributes[(at,)] = [["tt.divisibility", 16]]
    gpu = (
        GPUTarget("hip", target, 64)
        if target.startswith("gfx")
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": entry.warps, "num_stages": entry.stages}
    found = triton.compile(source, target=gpu, options=options)
    return {"shared": found.metadata.shared, **_resources(found, gpu.backend)}


def constexprs(arguments: list[str], target: str, head: int, tiles: Tiles) -> dict[str, Any]:
    """Compile-time arguments, as a launch would give them."""
    every = {
        "TILE_M": tiles.m,
        "TILE_N": tiles.n,
        "DIM": padded(head),
        "HEAD": head,
        "TMA": descriptors(target),
        "PRECISION": "tf32",
        "STAGES": tiles.stages,
        "PERSISTENT": tiles.persistent,
        "FP8": target in ("sm_89", "sm_90", "sm_100"),
    }
    return {name: value for name, value in every.items() if name in arguments}


def _kind(kernel: str, argument: str, dtype: str, constants: dict[str, Any]) -> str:
    if argument in constants:
        return "constexpr"
    if kernel == "int8" and argument in ("q", "k"):
        return "*i8"
    if kernel == "int8" and argument == "v" and constants["FP8"]:
        return "*fp8e4nv"
    if argument in ("q", "k", "v", "o", "do", "dq", "dk", "dv"):
        return f"*{dtype}"
    if argument in ("row_ptr", "col", "partial", "order", "q_start", "k_start"):
        return "*i32"
    if argument in ("lse", "delta", "sums", "q_scale", "k_scale", "v_scale"):
        return "*fp32"
    return "fp32" if argument in ("scale", "scale_log2") else "i32"


def _resources(found: Any, backend: str) -> dict[str, Any]:
    if backend == "hip":
        text = found.asm["amdgcn"]
        bytes_each = {"vgpr_spill_count": 4, "private_segment_fixed_size": 1}
        spills = sum(
            size * int(count)
            for name, size in bytes_each.items()
            for count in re.findall(rf"\.{name}: *(\d+)", text)
        )
        return {"spills": spills, "matrix": text.count("v_mfma"), "copies": 0}
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spills = sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", text))
    ptx = found.asm["ptx"]
    return {
        "spills": spills,
        "matrix": len(re.findall(r"(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)", ptx)),
        "wgmma": ptx.count("wgmma.mma_async"),
        "copies": ptx.count("cp.async.bulk.tensor"),
    }


def faults(kernel: str, target: str, head: int, result: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel, in words; nothing if it fits the target."""
    found = []
    if result["spills"]:
        found.append(f"spills {result['spills']} bytes")
    if result["shared"] > SHARED_BYTES[target]:
        found.append(f"takes {result['shared']} bytes of {SHARED_BYTES[target]}")
    if not result["matrix"]:
        found.append("does not use the matrix unit")
    if target == "sm_90" and not result["wgmma"] and (kernel, head) not in WITHOUT_WGMMA:
        found.append("does not use wgmma")
    if descriptors(target) and not result["copies"]:
        found.append("does not use the tensor copy engine")
    return found


def write(cells: Cells) -> None:
    """A table beside the results."""
    import triton

    lines = [
        "# Attention kernels compiled ahead of time",
        "",
        f"Triton {triton.__version__}, bfloat16, no GPU: nothing here has been launched. Tiles are",
        "queries x keys, warps, stages. Spills are bytes of registers kept in memory.",
        "",
        "| kernel | target | head | tiles | shared bytes | of | spills | fits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells.cells.values():
        f, r = cell["fields"], cell["result"]
        m, n, warps, stages, persistent = f["tiles"]
        grid = ", persistent" if persistent and f["kernel"] in ("forward", "int8") else ""
        verdict = "; ".join(faults(f["kernel"], f["target"], f["head"], r)) or "yes"
        lines.append(
            f"| {f['kernel']} | {f['target']} | {f['head']} | {m} x {n}, {warps}, {stages}{grid} | "
            f"{r['shared']} | {SHARED_BYTES[f['target']]} | {r['spills']} | {verdict} |"
        )
    cells.path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main(
    kernel: Annotated[list[str] | None, typer.Option(help="Which; all if none.")] = None,
    out: Annotated[Path, typer.Option(help="Results; .md goes beside.")] = RESULTS,
) -> None:
    """Compile what is missing or has changed, then write the table."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    prune(out)
    cells = Cells(out)
    for offer in offers():
        if kernel and offer["kernel"] not in kernel:
            continue
        fields = {**offer, "source": fingerprint(offer["kernel"])}
        found = cells.run(lambda offer=offer: compile_one(**offer), **fields)
        for fault in faults(offer["kernel"], offer["target"], offer["head"], found):
            print(offer, fault, flush=True)
    write(cells)


if __name__ == "__main__":
    typer.run(main)
