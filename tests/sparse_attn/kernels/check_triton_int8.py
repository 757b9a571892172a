"""The quantised Triton kernel, in the interpreter or on a card; run by test_triton.py."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from accel.sparse_attn.kernels import triton_int8
from accel.sparse_attn.kernels.merge import merge_lse
from accel.sparse_attn.kernels.triton_int8_launch import TritonInt8, channels, quantised
from accel.sparse_attn.kernels.triton_launch import by_descriptors
from accel.sparse_attn.layout import uniform
from tests.sparse_attn.kernels.check_triton import embedded, permuted, poisoned, sparse
from tests.sparse_attn.kernels.problems import DEVICE, SIZES, amid_nan, planted, problem, ragged

PLAIN, FP8 = TritonInt8(), TritonInt8(fp8=True)
KERNELS = {"plain": PLAIN, "fp8": FP8}
with torch.device(DEVICE):
    tiny = problem(64, dtype=torch.float16)
KERNELS = {name: k for name, k in KERNELS.items() if k.why_not(tiny.q, tiny.layout) is None}
assert poisoned  # a fixture of all tests here too
SHAPES = [(64, 64, 64), (129, 96, 64), (200, 128, 128)]
if DEVICE != "cpu":  # too long for the interpreter
    SHAPES += [(1000, 64, 128), (4097, 128, 128)]


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


@pytest.fixture(autouse=True)
def right_rounding(monkeypatch):
    """FP8 by torch: the interpreter forgets to carry where rounding reaches a power of two."""
    plain = interpreter._convert_float

    def convert(data, source, target, mode):
        if source == tl.float32 and target == tl.float8e4nv:
            rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.float8_e4m3fn)
            return rounded.view(torch.uint8).numpy()
        return plain(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield


def biased(asked, size=20.0):
    """Keys with a large bias in each channel, as those of video models have."""
    bias = torch.randn(asked.k.shape[-1]) * size
    return replace(asked, k=asked.k + bias.to(asked.k.dtype))


def rounded(x, starts):
    """x (B, H, S, D) in steps of a 127th of the largest of every block, halves away from zero."""
    found = torch.zeros_like(x)
    edges = starts[0, 0].tolist()
    for first, last in itertools.pairwise(edges):
        part = x[:, :, first:last]
        if first < last:
            step = part.abs().amax((2, 3), keepdim=True) / 127
            found[:, :, first:last] = (part / step).abs().add(0.5).floor() * part.sign() * step
    return found


def eager(asked, fp8):
    """Output and log-sum of quantised attention written plainly: what the format itself loses."""
    q, k, v = (x.float().transpose(1, 2) for x in (asked.q, asked.k, asked.v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    mean = k.nanmean(2, keepdim=True)
    query, key = rounded(q, asked.layout.q_start), rounded(k - mean, asked.layout.k_start)
    mask = asked.layout.mask()
    scores = (query.double() @ key.double().mT * asked.scale).masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)
    lse = torch.where(lse.isinf(), lse, lse + asked.scale * (q.double() * mean).sum(-1))
    top = scores.amax(-1, keepdim=True)
    weights = (scores - torch.where(top.isinf(), 0, top)).exp()
    v = v.double().nan_to_num(0)
    if fp8:
        step = v.abs().amax(2, keepdim=True) / 448
        parts = ((weights * 448).float(), (v / step).float())
        by_weight, value = (x.to(torch.float8_e4m3fn).double() for x in parts)
        out = by_weight @ value * step / 448
    else:
        out = weights.to(asked.q.dtype).double() @ v
    out = out / weights.sum(-1, keepdim=True).clamp(min=1e-30)
    return out.transpose(1, 2).to(asked.q.dtype), lse


def assert_right(asked, kernel):
    """No further from float64 than 1.5 times plain quantised code, and near to that code."""
    out, lse = asked.by(kernel)
    made, made_lse = eager(asked, kernel.fp8)
    true, true_lse = asked.truth()
    assert torch.isfinite(out).all()
    empty = true_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    for measure in (torch.linalg.vector_norm, lambda x: x.abs().max()):
        off, lost, unlike = measure(out - true), measure(made - true), measure(out - made)
        floor = 2 * torch.finfo(asked.q.dtype).eps * measure(true)
        assert off <= 1.5 * lost + floor, f"off by {off:.3g}, plain quantised code by {lost:.3g}"
        assert unlike <= (1.0 if kernel.fp8 else 0.25) * lost + floor, f"{unlike:.3g}, {lost:.3g}"
    assert (lse - made_lse)[~empty].abs().max() < 2e-3


@pytest.mark.parametrize(("tokens", "head", "block"), SHAPES)
def test_dense_with_biased_keys(kernel, tokens, head, block):
    asked = problem(tokens, head, shared=2, block=block, dtype=torch.float16)
    assert_right(biased(asked), kernel)


def test_maps_of_each_head_and_blocks_of_any_size(kernel):
    assert_right(biased(sparse(torch.float16, shared=2)), kernel)
    map = torch.rand(1, 2, 6, 6) < 0.7
    asked = problem(160, head=96, map=map, starts=ragged(160, 64), dtype=torch.float16)
    assert_right(biased(asked), kernel)


def test_tokens_left_out_are_never_read(kernel):
    asked = amid_nan(problem(160, starts=SIZES, dtype=torch.float16))[1]
    assert asked.k.isnan().any() and asked.v.isnan().any()
    assert_right(asked, kernel)


def test_a_nan_that_is_attended_to_shows():
    asked = problem(128, dtype=torch.float16)
    for name in "kv":
        broken = getattr(asked, name).clone()
        broken[0, 100, 1, 3] = torch.nan
        out = replace(asked, **{name: broken}).by(PLAIN)[0]
        assert out[..., 1, 3].isnan().all()
        assert out[..., 0, :].isfinite().all()


def test_keys_in_two_parts_merge_to_the_whole(kernel):
    asked = biased(sparse(torch.float16))
    first = asked.layout.dense().clone()
    second = first.clone()
    first[..., 1::2] = False
    second[..., 0::2] = False
    parts = (*asked.with_map(first).by(kernel), *asked.with_map(second).by(kernel))
    merged, merged_lse = merge_lse(*parts)
    out, lse = asked.by(kernel)
    near = 0.02 if kernel.fp8 else 0.002  # FP8 rounds weights against another maximum
    assert (merged - out).norm() < near * out.norm()
    assert torch.allclose(merged_lse, lse, atol=1e-4)


def test_order_of_blocks_and_of_tokens_in_them_does_not_matter(kernel):
    map = torch.rand(1, 2, 6, 6) < 0.7
    asked = biased(problem(160, map=map, starts=ragged(160, 64), dtype=torch.float16))
    other, tokens = permuted(asked)
    (out, lse), (there, lse_there) = asked.by(kernel), other.by(kernel)
    near = 0.02 if kernel.fp8 else 0.002
    assert (there - out[:, tokens]).norm() < near * out.norm()
    assert torch.allclose(lse_there, lse[..., tokens], atol=2e-3)


def test_large_logits(kernel):
    assert_right(problem(129, dtype=torch.float16, factor=50), kernel)


FAULTS = {
    "keys keep their mean": ("quantise", "values - middle[None, :]", "values"),
    "scale of another block": ("quantised_forward", "tl.load(k_scale + block)", "tl.load(k_scale)"),
    "channel scales forgotten": (
        "quantised_forward",
        "out = out * by_channel[None, :]",
        "out = out",
    ),
    "keys past the end": (
        "quantised_forward",
        "offsets[None, :] < limit",
        "offsets[None, :] <= limit",
    ),
    "values past the end": ("quantised_forward", "value = ended(", "ended("),
}
if "fp8" not in KERNELS:
    del FAULTS["channel scales forgotten"]
if not by_descriptors(tiny.q):
    del FAULTS["values past the end"]  # pointers stop where a block ends


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, monkeypatch, tmp_path):
    name, old, new = FAULTS[fault]
    kernel = KERNELS.get("fp8", PLAIN) if "channel" in fault else PLAIN
    if fault == "values past the end":
        asked = amid_nan(problem(160, starts=SIZES, dtype=torch.float16))[1]
    else:
        asked = biased(problem(160, starts=ragged(160, 64), dtype=torch.float16))
        growing = torch.linspace(0.1, 4, 160)[None, :, None, None]
        asked = replace(asked, k=(asked.k * growing).half())
    assert_right(asked, kernel)
    faulty = planted(tmp_path, triton_int8, old, new)
    monkeypatch.setattr(triton_int8, name, getattr(faulty, name))
    with pytest.raises(AssertionError):
        assert_right(asked, kernel)


def test_quantising_is_exact_to_half_a_step():
    x = torch.randn(2, 160, 2, 64)
    strided = embedded(x, 16)
    edges, mean = ragged(160, 64), x.mean(1)
    values, scales = quantised(strided, mean, edges, 64)
    each = torch.repeat_interleave(scales, edges.diff()[0, 0], 2).transpose(1, 2)[..., None]
    assert ((values * each + mean[:, None] - x).abs() <= each * 0.5001).all()
    assert values.abs().amax((1, 3)).eq(127).all()
    assert (scales[:, :, edges.diff()[0, 0] == 0] == 0).all()


def test_channels_use_the_whole_range():
    v = torch.randn(1, 64, 2, 64) * torch.linspace(0.01, 100, 64)
    values, scales = channels(v)
    assert (values.float().abs().amax(1) == 448).all()
    assert torch.allclose(values.float() * scales[:, None], v, rtol=0.07, atol=1e-3 * v.abs().max())


def test_strides_and_repetition(kernel):
    asked = sparse(torch.float16)
    strided = replace(asked, **{n: embedded(getattr(asked, n), 16) for n in "qkv"})
    first = asked.by(kernel)
    assert all(map(torch.equal, strided.by(kernel), first))
    assert all(map(torch.equal, asked.by(kernel), first))


def test_what_it_cannot_do_is_said():
    asked = problem(129, dtype=torch.float16)
    with pytest.raises(ValueError, match="no gradient"):
        replace(asked, q=asked.q.requires_grad_()).by(PLAIN)
    starts = torch.cat([uniform(128, 64), uniform(128, 64)], 1)
    layout = problem(128, starts=starts).layout
    assert "head to head" in PLAIN.why_not(asked.q, layout)
