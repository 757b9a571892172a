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
    SHARED_BYTES,
    Tiles,
    builds,
    descriptors,
    padded,
)
from benchmarks.cells import Cells

RESULTS = Path(__file__).parent / "results" / "attention_compile.json"
FUNCTIONS = {
    "forward": ("triton_attention", "attention_forward"),
    "queries": ("triton_backward", "gradient_queries"),
    "keys": ("triton_backward", "gradient_keys"),
    "keys_fp32": ("triton_backward", "gradient_keys"),
    "sums": ("triton_attention", "block_sums"),
    "int8": ("triton_int8", "quantised_forward"),
    "int8_fp8": ("triton_int8", "quantised_forward"),
    "quantise": ("triton_int8", "quantise"),
    "merge": ("triton_attention", "merge_outputs"),
}
DESCRIBED = {  # what a kernel reads through descriptors, and whose tile that is
    "forward": {"k": "n", "v": "n"},
    "queries": {"k": "n", "v": "n"},
    "keys": {"q": "m", "do": "m"},
    "keys_fp32": {"q": "m", "do": "m"},
    "sums": {"k": "n"},
    "int8": {"k": "n", "v": "n"},
    "int8_fp8": {"k": "n", "v": "n"},
}
WITHOUT_PRODUCTS = ("quantise", "merge")
WITHOUT_WGMMA = {("keys", 256), ("keys_fp32", 256)}
"""Kernels and head sizes whose sums fill the registers at the 64 rows that wgmma needs."""
PACKAGE = "accel.sparse_attn.kernels"


def offers() -> list[dict[str, Any]]:
    """Everything to compile: kernel, target, head size, tiles and type."""
    return [{**vars(build), "tiles": list(vars(build.tiles).values())[:5]} for build in builds()]


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
    kernel: str, target: str, head: int, tiles: list[int], dtype: str
) -> dict[str, Any]:
    """Compile one kernel for one target, and read what it takes off the result.

    Returns:
        shared: bytes of shared memory; spills: bytes of registers kept in memory; registers: of a
        thread; products: how many instructions of each of the target's matrix units; copies: of
        its tensor copy engine.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    gpu = (
        GPUTarget("hip", target, 64)
        if target.startswith("gfx")
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )
    entry = Tiles(*tiles)
    options = {"num_warps": entry.warps, "num_stages": entry.stages}
    asked = source(kernel, target, head, entry, dtype)
    found = triton.compile(asked, target=gpu, options=options)
    return {"shared": found.metadata.shared, **_resources(found, gpu.backend)}


def source(kernel: str, target: str, head: int, tiles: Tiles, dtype: str) -> Any:
    """What Triton is asked to compile: a function, types, constants and what is aligned."""
    from triton.compiler import ASTSource

    module, name = FUNCTIONS[kernel]
    function = getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
    constants = constexprs(kernel, function.arg_names, target, head, tiles)
    signature, attributes = {}, {}
    for at, parameter in enumerate(function.params):
        argument = parameter.name
        kind = _kind(kernel, argument, dtype, constants)
        if descriptors(target) and argument in DESCRIBED.get(kernel, {}):
            rows = getattr(tiles, DESCRIBED[kernel][argument])
            kind = f"tensordesc<{kind[1:]}[1,{rows},1,{padded(head)}]>"
        signature[argument] = kind
        if not parameter.do_not_specialize and (kind.startswith("*") or "stride_" in argument):
            attributes[(at,)] = [["tt.divisibility", 16]]
            if kind.startswith("*") and target.startswith("gfx"):
                attributes[(at,)] += [["tt.pointer_range", 32]]
    return ASTSource(function, signature, constants, attributes)


def constexprs(
    kernel: str, arguments: list[str], target: str, head: int, tiles: Tiles
) -> dict[str, Any]:
    """Compile-time arguments, as a launch would give them."""
    every = {
        "TILE_M": tiles.m,
        "TILE_N": tiles.n,
        "ROWS": tiles.m,
        "DIM": padded(head),
        "HEAD": head,
        "TMA": descriptors(target),
        "PRECISION": "tf32",
        "STAGES": tiles.stages,
        "PERSISTENT": tiles.persistent,
        "FP8": kernel == "int8_fp8",
    }
    return {name: value for name, value in every.items() if name in arguments}


def _kind(kernel: str, argument: str, dtype: str, constants: dict[str, Any]) -> str:
    if argument in constants:
        return "constexpr"
    if kernel in ("int8", "int8_fp8") and argument in ("q", "k"):
        return "*i8"
    if kernel == "int8_fp8" and argument == "v":
        return "*fp8e4nv"
    if kernel == "quantise" and argument == "out":
        return "*i8"
    if kernel == "keys_fp32" and argument in ("dk", "dv"):
        return "*fp32"
    if argument in ("q", "k", "v", "o", "do", "dq", "dk", "dv", "x", "o1", "o2"):
        return f"*{dtype}"
    if argument in ("row_ptr", "col", "partial", "order", "q_start", "k_start", "starts"):
        return "*i32"
    if argument in ("lse", "lse1", "lse2", "delta", "sums", "mean", "scales"):
        return "*fp32"
    if argument in ("q_scale", "k_scale", "v_scale"):
        return "*fp32"
    return "fp32" if argument in ("scale", "scale_log2") else "i32"


UNITS = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma.sync": "mma.sync"}


def _resources(found: Any, backend: str) -> dict[str, Any]:
    if backend == "hip":
        text = found.asm["amdgcn"]
        bytes_each = {"vgpr_spill_count": 4, "private_segment_fixed_size": 1}
        spills = sum(
            size * int(count)
            for name, size in bytes_each.items()
            for count in re.findall(rf"\.{name}: *(\d+)", text)
        )
        registers = max(int(count) for count in re.findall(r"\.vgpr_count: *(\d+)", text))
        products = {"mfma": text.count("v_mfma")}
        return {"spills": spills, "registers": registers, "products": products, "copies": 0}
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    ptx = found.asm["ptx"]
    return {
        "spills": sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", text)),
        "registers": max(int(count) for count in re.findall(r"REG:(\d+)", text)),
        "products": {unit: n for unit, name in UNITS.items() if (n := ptx.count(name))},
        "copies": ptx.count("cp.async.bulk.tensor"),
    }


def exemption(kernel: str, target: str, head: int) -> str:
    """Why a kernel need not use the newest matrix unit of its target; empty if it must."""
    if target == "sm_90" and (kernel, head) in WITHOUT_WGMMA:
        return "32 rows a tile, wgmma needs 64: more would spill"
    return ""


def faults(kernel: str, target: str, head: int, result: dict[str, Any]) -> list[str]:
    """What is wrong with a compiled kernel, in words; nothing if it fits the target."""
    found = []
    if result["spills"]:
        found.append(f"spills {result['spills']} bytes")
    if result["shared"] > SHARED_BYTES[target]:
        found.append(f"takes {result['shared']} bytes of {SHARED_BYTES[target]}")
    if kernel in WITHOUT_PRODUCTS:
        return found
    units = {unit for unit, count in result["products"].items() if count}
    if not units:
        found.append("does not use the matrix unit")
    newest = {"sm_90": "wgmma", "sm_100": "tcgen05"}.get(target)
    if newest and newest not in units and not exemption(kernel, target, head):
        found.append(f"does not use {newest}")
    if descriptors(target) and not result["copies"]:
        found.append("does not use the tensor copy engine")
    return found


def write(cells: Cells) -> None:
    """A table beside the results."""
    import triton

    lines = [
        "# Attention kernels compiled ahead of time",
        "",
        f"Triton {triton.__version__}, no GPU: nothing here has been launched. Everything that a",
        "launch may ask for is here, and nothing else is launched. Tiles are queries x keys (rows",
        "where a kernel has only these), warps, stages. Spills are bytes of registers kept in",
        "memory. Products are instructions of the matrix units. Fits: no spills, shared memory",
        "within the target's, wgmma on sm_90 and tcgen05 on sm_100; exemptions are named.",
        "",
        "| kernel | target | type | head | tiles | shared | of | registers | spills | products | "
        "fits |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = {str(offer): at for at, offer in enumerate(offers())}
    for cell in sorted(cells.cells.values(), key=lambda c: order[str(_offer(c["fields"]))]):
        f, r = cell["fields"], cell["result"]
        m, n, warps, stages, persistent = f["tiles"]
        tiles = f"{m} x {n}" if n else f"{m}"
        grid = ", persistent" if persistent and f["kernel"] == "forward" else ""
        products = ", ".join(f"{count} {unit}" for unit, count in r["products"].items()) or "none"
        where = f["kernel"], f["target"], f["head"]
        verdict = "; ".join(faults(*where, r)) or "yes"
        if verdict == "yes" and (reason := exemption(*where)):
            verdict = f"yes, but {reason}"
        lines.append(
            f"| {f['kernel']} | {f['target']} | {f['dtype']} | {f['head']} | "
            f"{tiles}, {warps}, {stages}{grid} | {r['shared']} | {SHARED_BYTES[f['target']]} | "
            f"{r['registers']} | {r['spills']} | {products} | {verdict} |"
        )
    cells.path.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _offer(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "source"}


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
