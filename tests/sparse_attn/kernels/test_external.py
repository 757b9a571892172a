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
from tests.sparse_attn.kernels.problems import planted, problem, ragged


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


def eager(q, k, v, scale):
    """Output (B, S, H, D) and natural log-sum (B, H, S), heads of keys as many as of queries."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v), scores.logsumexp(-1)


def flash_attn_func(q, k, v, *, softmax_scale, return_attn_probs):
    """Shares keys between heads itself; a third result with the log-sums."""
    assert return_attn_probs
    wide = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    return *eager(q, *wide, softmax_scale), None


def sageattn(q, k, v, *, tensor_layout, sm_scale, return_lse):
    """Tokens before heads only if told so; shares keys itself."""
    assert return_lse
    if tensor_layout == "HND":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    wide = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    out, lse = eager(q, *wide, sm_scale)
    return (out if tensor_layout == "NHD" else out.transpose(1, 2)), lse


def memory_efficient(q, k, v, *, scale):
    """Heads of keys as many as of queries; log-sums padded to 32 rows."""
    out, lse = eager(q, k, v, scale)
    return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.inf)


def block_sparse_sage2(q, k, v, *, mask_id, scale, tensor_layout, output_dtype):
    assert tensor_layout == "NHD"
    assert mask_id.dtype == torch.int8
    rows = torch.repeat_interleave(mask_id.bool(), 128, 2)[:, :, : q.shape[1]]
    mask = torch.repeat_interleave(rows, 128, 3)[..., : k.shape[1]]
    heads = (x.transpose(1, 2) for x in (q, k, v))
    plain = torch.nn.functional.scaled_dot_product_attention
    return plain(*heads, attn_mask=mask, scale=scale).transpose(1, 2).to(output_dtype)


@pytest.fixture
def stand_ins(monkeypatch):
    stand_in(monkeypatch, "flashinfer", VariableBlockSparseAttentionWrapper=VariableBlocks)
    stand_in(monkeypatch, "spas_sage_attn", block_sparse_sage2_attn_cuda=block_sparse_sage2)
    stand_in(monkeypatch, "flash_attn", flash_attn_func=flash_attn_func)
    stand_in(monkeypatch, "sageattention", sageattn=sageattn)
    stand_in(monkeypatch, "xformers")
    name = "memory_efficient_attention_forward_requires_grad"
    stand_in(monkeypatch, "xformers.ops", **{name: memory_efficient})


def asked_of(package):
    """A problem that a package takes: shared keys, and a map where it walks one."""
    torch.manual_seed(0)
    if package == "flashinfer":
        map = torch.rand(2, 4, 6, 6) < 0.6
        map[0, 1, 0] = False
        return problem(160, batch=2, heads=4, shared=2, map=map, starts=ragged(160, 64))
    if package == "spas_sage_attn":
        map = torch.tensor([[[[True, False], [True, True]]]]).expand(1, 4, 2, 2)
        return problem(200, heads=4, shared=2, map=map, block=128)
    return problem(129, batch=2, heads=4, shared=2)


def assert_adapted(kernel, package):
    asked = asked_of(package)
    out, lse = asked.by(kernel)
    true, true_lse = asked.by(Reference())
    assert torch.allclose(out, true, atol=1e-6)
    assert lse.shape == true_lse.shape
    if package == "spas_sage_attn":
        assert lse.isnan().all()  # it tells none
    else:
        assert torch.allclose(lse, true_lse, atol=1e-5)


@pytest.mark.parametrize("package", EXTERNAL)
def test_what_a_package_is_given_and_answers(package, stand_ins):
    assert_adapted(EXTERNAL[package], package)


FAULTS = {
    "flash_attn: another scale": ("softmax_scale=scale", "softmax_scale=1.0"),
    "flash_attn: log-sums of powers of two": (
        "    return out, lse\n\n\ndef _sage",
        "    return out, lse * 1.44\n\n\ndef _sage",
    ),
    "sageattention: heads for tokens": ('layout="NHD", sm_scale', 'layout="HND", sm_scale'),
    "xformers: rows of padding": ("lse[..., : q.shape[1]]", "lse"),
    "xformers: keys not shared": (
        "k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v))\n    out, lse",
        "k, v = (x.repeat(1, 1, q.shape[2] // k.shape[2], 1) for x in (k, v))\n    out, lse",
    ),
    "flashinfer: log-sums of powers of two": ("* math.log(2)", "* 1"),
    "flashinfer: rows without keys": ("out.masked_fill(nothing[..., None], 0)", "out"),
    "spas_sage_attn: the map turned round": ("mask_id=mask", "mask_id=1 - mask"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, stand_ins, tmp_path):
    package = fault.split(":")[0]
    assert_adapted(EXTERNAL[package], package)
    faulty = planted(tmp_path, external, *FAULTS[fault])
    with pytest.raises((AssertionError, RuntimeError)):
        assert_adapted(faulty.EXTERNAL[package], package)


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
