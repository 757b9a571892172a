"""The quantised Triton kernel in Triton's interpreter; run by test_triton.py in its own process."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from accel.sparse_attn.kernels import triton_int8
from accel.sparse_attn.kernels.triton_int8_launch import TritonInt8, channels, quantised
from accel.sparse_attn.layout import uniform
from tests.sparse_attn.kernels.check_triton import embedded, planted, sparse
from tests.sparse_attn.kernels.problems import problem, ragged

PLAIN, FP8 = TritonInt8(), TritonInt8(fp8=True)


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


def biased(asked, size=20.0):
    """Keys with a large bias in each channel, as those of video models have."""
    bias = torch.randn(asked.k.shape[-1]) * size
    return replace(asked, k=asked.k + bias.to(asked.k.dtype))


def off(asked, kernel):
    """Relative L1 error and cosine similarity of the output, largest error of the log-sum."""
    out, lse = asked.by(kernel)
    true, true_lse = asked.truth()
    empty = true_lse == -torch.inf
    assert torch.equal(lse == -torch.inf, empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    relative = (out - true).abs().sum() / true.abs().sum()
    cosine = torch.cosine_similarity(out.double().flatten(), true.flatten(), 0)
    return float(relative), float(cosine), float((lse - true_lse)[~empty].abs().max())


def smooth(asked):
    """Values that vary slowly, as those of video models do; random ones cancel, errors do not."""
    tokens = torch.linspace(0, 3, asked.v.shape[1])[None, :, None, None]
    return replace(asked, v=((tokens + asked.v.float() / 4).cos()).to(asked.v.dtype))


def eager_fp8(asked):
    """Relative L1 error of float64 attention whose weights and values alone are rounded to FP8."""

    def rounded(x):
        return x.float().to(torch.float8_e4m3fn).double()

    q, k, v = (x.double().transpose(1, 2) for x in (asked.q, asked.k, asked.v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * asked.scale
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    step = v.abs().amax(2, keepdim=True) / 448
    out = rounded(weights * 448) @ rounded(v / step) * step / 448 / weights.sum(-1, keepdim=True)
    true = asked.truth()[0]
    return float((out.transpose(1, 2) - true).abs().sum() / true.abs().sum())


@pytest.mark.parametrize("kernel", [PLAIN, FP8], ids=["plain", "fp8"])
def test_dense_with_biased_keys(kernel):
    asked = smooth(biased(problem(129, shared=2, dtype=torch.float16)))
    relative, cosine, log = off(asked, kernel)
    assert relative < (0.01 + eager_fp8(asked) if kernel.fp8 else 0.03)
    assert cosine > 0.999
    assert log < 0.05


@pytest.mark.parametrize("kernel", [PLAIN, FP8], ids=["plain", "fp8"])
def test_sparse_maps_and_blocks_of_any_size(kernel):
    asked = biased(sparse(torch.float16, shared=2))
    assert off(asked, kernel)[1] > 0.999
    map = torch.rand(1, 2, 6, 6) < 0.7
    asked = biased(problem(160, head=96, map=map, starts=ragged(160, 64), dtype=torch.float16))
    assert off(asked, kernel)[1] > 0.999


def test_without_smoothing_it_would_fail(monkeypatch, tmp_path):
    """The planted fault: keys keep their mean, which takes up the range of INT8."""
    asked = smooth(biased(problem(129, dtype=torch.float16)))
    faulty = planted(tmp_path, triton_int8, "values - middle[None, :]", "values")
    assert off(asked, PLAIN)[0] < 0.03
    monkeypatch.setattr(triton_int8, "quantise", faulty.quantise)
    assert off(asked, PLAIN)[0] > 0.03


FAULTS = {
    "scale of another block": ("tl.load(k_scale + block)", "tl.load(k_scale)", 1.0),
    "channel scales forgotten": ("out = out * by_channel[None, :]", "out = out", 1.0),
    "keys past the end": ("offsets[None, :] < limit", "offsets[None, :] <= limit", 0.1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, monkeypatch, tmp_path):
    old, new, factor = FAULTS[fault]
    asked = problem(160, starts=ragged(160, 64), dtype=torch.float16, factor=factor)
    growing = torch.linspace(0.1, 4, 160)[None, :, None, None]
    asked = replace(asked, k=(asked.k * growing).half())
    kernel = FP8 if fault == "channel scales forgotten" else PLAIN
    bound = 0.01 + (eager_fp8(asked) if kernel.fp8 else 0.02 * factor)
    assert off(asked, kernel)[0] < bound
    faulty = planted(tmp_path, triton_int8, old, new)
    monkeypatch.setattr(triton_int8, "quantised_forward", faulty.quantised_forward)
    assert not off(asked, kernel)[0] < 2 * bound


def test_quantising_is_exact_to_half_a_step():
    x = torch.randn(2, 160, 2, 64)
    strided = embedded(x, 8)
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


def test_strides_and_repetition():
    asked = sparse(torch.float16)
    strided = replace(asked, **{n: embedded(getattr(asked, n), 8) for n in "qkv"})
    assert all(map(torch.equal, strided.by(PLAIN), asked.by(PLAIN)))


def test_large_logits_are_finite():
    asked = problem(129, dtype=torch.float16, factor=50)
    assert all(x.isfinite().all() for x in asked.by(FP8))


def test_what_it_cannot_do_is_said():
    asked = problem(129, dtype=torch.float16)
    with pytest.raises(ValueError, match="no gradient"):
        replace(asked, q=asked.q.requires_grad_()).by(PLAIN)
    starts = torch.cat([uniform(128, 64), uniform(128, 64)], 1)
    layout = problem(128, starts=starts).layout
    assert "head to head" in PLAIN.why_not(asked.q, layout)
