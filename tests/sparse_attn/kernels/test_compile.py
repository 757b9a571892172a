"""The Triton kernels compiled ahead of time, for cards that are not here.

All entries of the table were compiled by benchmarks/attention_compile.py; that its results are of
these sources and these entries is tested here, and one entry per target is compiled again.
"""

import json
import os

import pytest
import torch

from accel.sparse_attn.kernels import triton_launch
from accel.sparse_attn.kernels.triton_targets import (
    HEADS,
    SHARED_BYTES,
    TABLES,
    Tiles,
    offered,
    padded,
)
from benchmarks import attention_compile as aot


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


@pytest.mark.parametrize("block_q", [64, 128])
@pytest.mark.parametrize("block_k", [64, 128])
def test_every_layout_and_head_size_is_offered_tiles(block_q, block_k):
    for kernel, table in TABLES.items():
        if kernel == "sums" and (block_q, block_k) != (128, 128):
            continue  # it knows no layout and takes every block for one of 128
        assert set(table) == set(SHARED_BYTES)
        for target in table:
            assert set(table[target]) == set(HEADS)
            for head in (8, 64, 72, 96, 128, 160, 256):
                entries = offered(kernel, target, head, block_q, block_k)
                assert entries
                assert set(entries) <= set(table[target][padded(head)])
                for tiles in entries:
                    assert block_q % tiles.m == 0
                    assert block_k % tiles.n == 0


@pytest.mark.parametrize("target", SHARED_BYTES)
def test_forward_compiles(target):
    tiles = list(vars(TABLES["forward"][target][128][0]).values())
    found = aot.compile_one("forward", target, 128, tiles)
    assert not aot.faults("forward", target, 128, found)
    if target == "sm_90":
        assert found["wgmma"] >= 16


def test_tiles_that_are_too_large_are_found():
    found = aot.compile_one("keys", "sm_90", 256, list(vars(Tiles(64, 64, 8, 1)).values()))
    assert any("spills" in fault for fault in aot.faults("keys", "sm_90", 256, found))
    found = {"shared": 65_537, "spills": 0, "matrix": 0, "wgmma": 0, "copies": 0}
    faults = aot.faults("forward", "gfx942", 64, found)
    assert "takes 65537 bytes of 65536" in faults
    assert "does not use the matrix unit" in faults
    assert "does not use wgmma" in aot.faults("forward", "sm_90", 64, found)


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
