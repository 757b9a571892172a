"""Packages as kernels: what they are given and what is made of their answers, by stand-ins."""

import sys
import types

import pytest
import torch

from accel import doctor
from accel.sparse_attn.kernels import KERNELS, external
from accel.sparse_attn.kernels.choice import choose
from accel.sparse_attn.kernels.external import EXTERNAL
from accel.sparse_attn.kernels.reference import Reference
from accel.sparse_attn.layout import BlockLayout
from tests.sparse_attn.kernels.problems import problem, ragged


@pytest.fixture(autouse=True)
def fresh():
    external.probe.cache_clear()
    yield
    external.probe.cache_clear()


def stand_in(monkeypatch, name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def edges(sizes):
    """(1, H, n + 1) starts of blocks of those sizes."""
    first = torch.zeros(*sizes.shape[:-1], 1, dtype=sizes.dtype)
    return torch.cat([first, sizes.cumsum(-1)], -1).to(torch.int32)[None]


class VariableBlocks:
    """FlashInfer's wrapper: heads first, log-sums in powers of two."""

    def __init__(self, workspace):
        assert workspace.dtype == torch.uint8

    def plan(self, map, rows, columns, queries, keys, head, *, sm_scale, q_data_type):
        assert map.shape[0] == queries == keys
        self.settings = map, rows, columns, sm_scale

    def run(self, q, k, v, return_lse):
        map, rows, columns, scale = self.settings
        starts = edges(rows), edges(columns)
        layout = BlockLayout.from_map(
            map[None], *starts, 64, 64, seq_q=q.shape[1], seq_k=k.shape[1]
        )
        out, lse = Reference().attend(*(x.transpose(0, 1)[None] for x in (q, k, v)), layout, scale)
        out = out[0].transpose(0, 1)
        out[lse[0] == -torch.inf] = torch.nan
        return out, lse[0] / torch.log(torch.tensor(2.0))


def test_flashinfer_walks_the_layout(monkeypatch):
    stand_in(monkeypatch, "flashinfer", VariableBlockSparseAttentionWrapper=VariableBlocks)
    map = torch.rand(2, 2, 6, 6) < 0.6
    map[0, 1, 0] = False
    asked = problem(160, batch=2, shared=2, map=map, starts=ragged(160, 64))
    out, lse = asked.by(EXTERNAL["flashinfer"])
    true, true_lse = asked.by(Reference())
    assert torch.allclose(out, true, atol=1e-6)
    assert torch.allclose(lse, true_lse, atol=1e-5)


def test_spas_sage_attn_gets_the_map(monkeypatch):
    def call(q, k, v, *, mask_id, scale, tensor_layout, output_dtype):
        assert tensor_layout == "NHD"
        assert mask_id.dtype == torch.int8
        rows = torch.repeat_interleave(mask_id.bool(), 128, 2)[:, :, : q.shape[1]]
        mask = torch.repeat_interleave(rows, 128, 3)[..., : k.shape[1]]
        heads = (x.transpose(1, 2) for x in (q, k, v))
        plain = torch.nn.functional.scaled_dot_product_attention
        return plain(*heads, attn_mask=mask, scale=scale).transpose(1, 2)

    stand_in(monkeypatch, "spas_sage_attn", block_sparse_sage2_attn_cuda=call)
    map = torch.tensor([[[[True, False], [True, True]]]]).expand(1, 2, 2, 2)
    asked = problem(200, shared=2, map=map, block=128)
    out, lse = asked.by(EXTERNAL["spas_sage_attn"])
    assert torch.allclose(out, asked.by(Reference())[0], atol=1e-6)
    assert lse.shape == (1, 2, 200)
    assert lse.isnan().all()


def test_dense_packages_refuse_layouts_that_leave_blocks_out():
    asked = problem(129, dtype=torch.float16)
    map = asked.layout.dense().clone()
    map[0, 1, 2, 0] = False
    for name in ("flash_attn", "sageattention", "xformers"):
        assert EXTERNAL[name].unfit(asked.q, asked.layout) is None
        assert "dense" in EXTERNAL[name].unfit(asked.q, asked.with_map(map).layout)
    assert EXTERNAL["flashinfer"].unfit(asked.q, asked.with_map(map).layout) is None


def test_packages_refuse_keys_that_a_mask_hides():
    asked = problem(129, dtype=torch.float16)
    layout, _ = asked.layout.masked(torch.arange(129)[None] < 100)
    for name in ("flash_attn", "sageattention", "xformers", "flashinfer"):
        assert "attention mask hides" in EXTERNAL[name].unfit(asked.q, layout)


def test_what_a_package_cannot_take_is_said():
    asked = problem(129, head=96, dtype=torch.float16)
    assert "(64, 128)" in EXTERNAL["spas_sage_attn"].unfit(asked.q, asked.layout)
    asked = problem(129, dtype=torch.float16)
    assert "(128, 64)" in EXTERNAL["spas_sage_attn"].unfit(asked.q, asked.layout)
    assert "float32" in EXTERNAL["flashinfer"].unfit(asked.q.float(), asked.layout)


def test_probing_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    assert external.probe("sageattention") == "not installed"
    stand_in(monkeypatch, "flashinfer")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert external.probe("flashinfer") == "installed, but its kernels need a GPU"
    external.probe.cache_clear()

    def fails(package):
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(external, "works", fails)
    assert external.probe("flashinfer") == "a tiny call failed: no kernel image"


def test_a_kernel_by_name_is_used_or_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = problem(129, dtype=torch.float16)
    for name in (*EXTERNAL, "triton", "triton_int8", "triton_int8_fp8"):
        with pytest.raises(ValueError, match=name):
            choose(name, KERNELS, asked.q, asked.layout)


def test_what_was_never_launched_is_never_chosen():
    class OnCard(torch.Tensor):
        device = torch.device("cuda")

    asked = problem(129, dtype=torch.float16)
    q = asked.q.as_subclass(OnCard)
    for known in (*EXTERNAL, "triton", "triton_int8", "triton_int8_fp8"):
        assert "never been launched" in KERNELS[known].unproven
    with pytest.raises(ValueError, match=r"no kernel that 'auto' may choose.*cuda") as error:
        # without triton, which asks what card it is
        choose("auto", {k: KERNELS[k] for k in ("flex", "gather")}, q, asked.layout)
    assert "flex (it has never been launched on a card)" in str(error.value)
    assert "by name, kernel='flex' or kernel='gather'" in str(error.value)


def test_the_doctor_lists_every_package():
    found = {f.name: f for f in doctor._attention()}
    for name, kernel in EXTERNAL.items():
        assert found[name].state == "works" or kernel.install in found[name].detail
