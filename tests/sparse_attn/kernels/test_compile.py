"""The Triton kernels compiled ahead of time, for cards that are not here.

All entries of the table were compiled by benchmarks/attention_compile.py; that its results are of
these sources and these entries is tested here, and one entry per target is compiled again.
"""

import json
import os

import pytest
import torch

from accel.sparse_attn.kernels import triton_launch
from accel.sparse_attn.kernels.triton_int8_launch import TritonInt8
from accel.sparse_attn.kernels.triton_targets import (
    HEADS,
    SHARED_BYTES,
    TABLES,
    Tiles,
    builds,
    compiled,
    offered,
    padded,
)
from benchmarks import attention_compile as aot
from tests.sparse_attn.kernels.problems import problem


@pytest.fixture(autouse=True)
def fusion(monkeypatch):
    pytest.importorskip("triton")
    assert os.environ.get("TRITON_INTERPRET") != "1"
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


def test_limits_of_the_targets():
    assert SHARED_BYTES == {
        "sm_80": 166_912,
        "sm_89": 101_376,
        "sm_90": 232_448,
        "sm_100": 232_448,
        "gfx942": 65_536,
    }


def test_every_entry_on_offer_was_compiled_from_these_sources_and_fits():
    cells = json.loads(aot.RESULTS.read_text())["cells"].values()
    results = {json.dumps(cell["fields"], sort_keys=True): cell["result"] for cell in cells}
    wanted = {}
    for offer in aot.offers():
        fields = {**offer, "source": aot.fingerprint(offer["kernel"])}
        wanted[json.dumps(fields, sort_keys=True)] = offer
    assert results.keys() == wanted.keys(), "run python -m benchmarks.attention_compile"
    for key, offer in wanted.items():
        faults = aot.faults(offer["kernel"], offer["target"], offer["head"], results[key])
        assert not faults, (offer, faults)


SHARED_OF_PROCESSOR = {"sm_80": 167_936, "sm_89": 102_400, "sm_90": 233_472, "gfx942": 65_536}
"""Bytes; a program takes 1,024 more than it asks for, except on AMD."""


def test_persistent_grids_are_what_processors_hold():
    """65,536 registers on NVIDIA; on AMD four units of 512 registers, a warp takes them of one."""
    found = {}
    for cell in json.loads(aot.RESULTS.read_text())["cells"].values():
        fields, result = cell["fields"], cell["result"]
        m, n, warps, stages, persistent = fields["tiles"]
        if fields["kernel"] != "forward" or not persistent:
            continue
        target, registers = fields["target"], -(-result["registers"] // 8) * 8
        if target == "gfx942":
            held = 512 // registers * 4 // warps, SHARED_OF_PROCESSOR[target] // result["shared"]
        else:
            shared = SHARED_OF_PROCESSOR[target] // (result["shared"] + 1024)
            held = 65_536 // (registers * 32 * warps), shared
        key = target, padded(fields["head"]), m, n, warps, stages
        found.setdefault(key, []).append(min(held))
    for (target, dim, m, n, warps, stages), held in found.items():
        (tiles,) = (
            t
            for t in TABLES["forward"][target][dim]
            if (t.m, t.n, t.warps, t.stages) == (m, n, warps, stages)
        )
        assert tiles.resident == min(held), (target, dim, tiles, held)


@pytest.mark.parametrize("block_q", [64, 128])
@pytest.mark.parametrize("block_k", [64, 128])
def test_every_layout_and_head_size_is_offered_tiles(block_q, block_k):
    for kernel, table in TABLES.items():
        if kernel == "sums" and (block_q, block_k) != (128, 128):
            continue  # it knows no layout and takes every block for one of 128
        without = {"sm_80", "gfx942"} if kernel == "int8_fp8" else set()
        assert set(table) == set(SHARED_BYTES) - without
        for target in table:
            assert set(table[target]) == {padded(head) for head in HEADS}
            for head in (8, 64, 72, 96, 128, 160, 256):
                entries = offered(kernel, target, head, block_q, block_k)
                assert entries
                assert set(entries) <= set(table[target][padded(head)])
                for tiles in entries:
                    assert block_q % tiles.m == 0
                    assert tiles.n == 0 or block_k % tiles.n == 0


def test_what_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="int8_fp8 is compiled for sm_89, sm_90, sm_100"):
        offered("int8_fp8", "gfx942", 64, 64, 64)
    with pytest.raises(ValueError, match="at most 256 channels, got 264"):
        compiled(264)
    with pytest.raises(ValueError, match="do not fit into blocks of 16 x 16"):
        offered("forward", "sm_90", 64, 16, 16)


class Launches:
    """Stands in for a kernel and keeps what it is launched with."""

    def __init__(self, function, found):
        self.function, self.found = function, found

    def __getitem__(self, grid):
        return lambda *args, **settings: self.found.append((self.function, args, settings))


def asked_of_triton(function, args, settings, target):
    """What a launch has Triton compile: types, constants, alignment, warps and stages."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    gpu = (
        GPUTarget("hip", target, 64) if "gfx" in target else GPUTarget("cuda", int(target[3:]), 32)
    )
    backend = make_backend(gpu)
    bind = create_function_from_signature(function.signature, function.params, backend)
    bound, specialised, options = bind(*args, **settings, debug=False)
    options, signature, constants, attributes = function._pack_args(
        backend, {**settings, "debug": False}, bound, specialised, options
    )
    signature = {name: kind.replace(" ", "") for name, kind in signature.items()}
    constants = {function.arg_names[at[0]]: value for at, value in constants.items()}
    attributes = {at: value for at, value in attributes.items() if value}
    return signature, constants, attributes, options.num_warps, options.num_stages


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
@pytest.mark.parametrize("head", [40, 96, 128])
def test_launches_are_of_what_was_compiled(target, head, monkeypatch):
    """Whatever inputs look like: strided, unaligned, one head, heads that share keys."""
    from accel.sparse_attn.kernels import triton_attention, triton_backward, triton_int8

    known = {}
    for build in builds():
        if build.target == target and build.head == compiled(head):
            source = aot.source(build.kernel, target, build.head, build.tiles, build.dtype)
            constants = {source.fn.arg_names[at[0]]: x for at, x in source.constants.items()}
            options = build.tiles.warps, build.tiles.stages
            known.setdefault(source.fn.__name__, []).append(
                (source.signature, constants, source.attrs, *options)
            )
    found = []
    for module, names in {
        triton_attention: ("attention_forward", "block_sums", "merge_outputs"),
        triton_backward: ("gradient_queries", "gradient_keys"),
        triton_int8: ("quantise", "quantised_forward"),
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, Launches(getattr(module, name), found))
    monkeypatch.setattr(triton_launch, "_target", lambda device: target)
    shapes = [(1, 1, 130, 64, 0), (2, 2, 160, 128, 1)]
    for dtype, (heads, shared, tokens, block, margin) in zip(
        (torch.float16, torch.bfloat16), shapes, strict=True
    ):
        asked = problem(tokens, head, heads=heads, shared=shared, dtype=dtype, block=block)
        q, k, v = (x.detach() for x in (asked.q, asked.k, asked.v))
        q = torch.zeros(*q.shape[:3], head + 3, dtype=dtype)[..., margin : margin + head]
        q.requires_grad_()
        out, lse = triton_launch.Triton().attend(q, k, v, asked.layout, 1)
        torch.autograd.grad((out, lse), q, (out.detach(), lse.detach()))
        for kernel in (TritonInt8(), TritonInt8(fp8=target == "sm_90")):
            kernel.attend(q.detach(), k, v, asked.layout, 1)
        edges = asked.layout.q_start
        triton_launch.block_sum(q, k, lse[..., :], edges, edges, 1)
        triton_launch.merge_lse(out[:, 1:], lse[..., 1:], out[:, 1:], lse[..., 1:])
    assert {function.__name__ for function, *_ in found} == set(known)
    for function, args, settings in found:
        launched = asked_of_triton(function, args, settings, target)
        assert launched in known[function.__name__], launched


@pytest.mark.parametrize("target", SHARED_BYTES)
def test_forward_compiles(target):
    tiles = list(vars(TABLES["forward"][target][128][0]).values())
    found = aot.compile_one("forward", target, 128, tiles, "bf16")
    assert not aot.faults("forward", target, 128, found)
    if target == "sm_90":
        assert found["products"]["wgmma"] >= 16


def test_tiles_that_are_too_large_are_found():
    found = aot.compile_one("keys", "sm_90", 256, list(vars(Tiles(64, 64, 8, 1)).values()), "bf16")
    assert any("spills" in fault for fault in aot.faults("keys", "sm_90", 256, found))
    found = {"shared": 65_537, "spills": 0, "products": {}, "copies": 0}
    faults = aot.faults("forward", "gfx942", 64, found)
    assert "takes 65537 bytes of 65536" in faults
    assert "does not use the matrix unit" in faults
    found["products"] = {"mma.sync": 8}
    assert "does not use wgmma" in aot.faults("forward", "sm_90", 64, found)
    assert "does not use tcgen05" in aot.faults("forward", "sm_100", 64, found)
    assert "does not use the tensor copy engine" in aot.faults("forward", "sm_100", 64, found)


def test_tuning_tries_what_is_on_offer_and_keeps_the_fastest(monkeypatch):
    from triton import testing

    q = torch.zeros(1, 128, 2, 128, dtype=torch.float16)
    entries = offered("forward", "sm_90", 128, 128, 128)
    assert len(entries) > 1
    monkeypatch.setattr(triton_launch, "TUNED", {})
    assert triton_launch.choose("forward", q, 128, 128) == entries[0]
    monkeypatch.setattr(
        testing,
        "do_bench",
        lambda call, **_: float(call() != entries[1]),
    )
    found = triton_launch.tune(
        "forward", q, 128, 128, lambda: triton_launch.choose("forward", q, 128, 128)
    )
    assert list(found) == entries
    assert triton_launch.choose("forward", q, 128, 128) == entries[1]
