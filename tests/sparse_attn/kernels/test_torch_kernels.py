"""The kernels written in torch, against SDPA and the float64 truth: the nine tests of kernels."""

import dataclasses

import pytest
import torch

from accel.sparse_attn.kernels import gather as gathering
from accel.sparse_attn.kernels import products
from accel.sparse_attn.kernels.flex import Flex
from accel.sparse_attn.kernels.gather import Gather
from accel.sparse_attn.kernels.reference import Reference
from accel.sparse_attn.layout import BlockLayout
from accel.sparse_attn.reorder import inverse
from tests.sparse_attn.kernels.problems import assert_right, problem, ragged

KERNELS = {
    "reference": Reference(),
    "gather": Gather(least=2**60),
    "products": Gather(least=1),
    "flex": Flex(compiled=False),
}
VARIABLE = {name: KERNELS[name] for name in ("reference", "gather", "products")}


@pytest.fixture(params=KERNELS)
def kernel(request):
    torch.manual_seed(0)
    return KERNELS[request.param]


@pytest.fixture(params=VARIABLE)
def variable(request):
    torch.manual_seed(0)
    return VARIABLE[request.param]


def sdpa(asked, mask=None):
    q, k, v = (x.transpose(1, 2) for x in (asked.q, asked.k, asked.v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2)


def sparse(asked, share=0.5):
    """Another map for every head and sample, an empty row and a row of the ragged last block."""
    map = torch.rand_like(asked.layout.dense().float()) < share
    map[0, 0, 0] = False
    map[-1, -1, 1] = False
    map[-1, -1, 1, -1] = True
    return asked.with_map(map)


@pytest.mark.parametrize(("tokens", "head"), [(128, 64), (257, 128), (1000, 64), (4097, 128)])
def test_a_full_map_is_plain_attention(kernel, tokens, head):
    asked = problem(
        tokens, head, heads=2 if tokens < 4097 else 1, batch=2 if tokens < 1000 else 1, block=128
    )
    torch.testing.assert_close(asked.by(kernel)[0], sdpa(asked), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_random_map_is_masked_attention_as_near_as_its_type_allows(kernel, dtype):
    assert_right(sparse(problem(300, heads=4, batch=2, dtype=dtype)), kernel)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_several_heads_over_many_keys(kernel, dtype):
    """Long sums in few digits, of few queries: eager code of these types is slow on a CPU."""
    asked = problem(130, heads=2, shared=2, block=128, dtype=dtype, sequence_k=4097)
    assert_right(sparse(asked), kernel)


def test_float64_is_exact(variable):
    asked = sparse(problem(300, heads=2, batch=2, dtype=torch.float64))
    out, lse = asked.by(variable)
    mask = asked.layout.mask()
    scores = torch.einsum("bqhd,bkhd->bhqk", asked.q, asked.k) * asked.scale
    sums = scores.masked_fill(~mask, -torch.inf).logsumexp(-1)
    expected = sdpa(asked, mask).nan_to_num(0)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lse, sums, rtol=1e-12, atol=1e-12)


def test_blocks_of_every_size(variable):
    start = ragged(140, 64)
    map = torch.rand(1, 2, 6, 6) < 0.6
    assert_right(problem(140, starts=start, map=map), variable)


def test_the_log_sum_is_that_of_all_keys(kernel):
    asked = problem(257, heads=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", asked.q, asked.k) * asked.scale
    torch.testing.assert_close(asked.by(kernel)[1], scores.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_two_halves_of_the_keys_merge_into_one(kernel):
    whole = problem(257, heads=2)
    map = whole.layout.dense()
    left = map & (torch.arange(map.shape[-1]) % 2 == 0)
    parts = [whole.with_map(m).by(kernel) for m in (left, map & ~left)]
    outs, sums = ([p[i] for p in parts] for i in range(2))
    shares = torch.stack(sums).softmax(0).transpose(2, 3)[..., None]
    merged = sum(o * s for o, s in zip(outs, shares, strict=True))
    torch.testing.assert_close(merged, whole.by(kernel)[0], rtol=1e-4, atol=1e-5)


def test_tokens_and_map_permuted_together_give_the_same(kernel):
    asked = sparse(problem(256, heads=2, batch=2))
    turn = torch.randperm(4)
    order = torch.arange(256).view(4, 64)[turn].flatten()
    turned = dataclasses.replace(
        asked, q=asked.q[:, order], k=asked.k[:, order], v=asked.v[:, order]
    ).with_map(asked.layout.dense()[:, :, turn][..., turn])
    torch.testing.assert_close(turned.by(kernel)[0][:, inverse(order)], asked.by(kernel)[0])


def test_strides_do_not_matter(kernel):
    asked = sparse(problem(257, heads=3, batch=2))
    wide = [torch.randn(2, 3, 257, 130).transpose(1, 2) for _ in range(3)]
    for into, x in zip(wide, (asked.q, asked.k, asked.v), strict=True):
        into[..., 1:65] = x
    strided = dataclasses.replace(
        asked, **dict(zip("qkv", [w[..., 1:65] for w in wide], strict=True))
    )
    torch.testing.assert_close(strided.by(kernel), asked.by(kernel))


def test_large_scores_stay_finite(kernel):
    assert_right(sparse(problem(200, factor=50.0)), kernel)


def test_the_same_bits_twice(kernel):
    asked = sparse(problem(300, heads=2))
    for first, second in zip(asked.by(kernel), asked.by(kernel), strict=True):
        assert torch.equal(first, second)


def test_heads_of_keys_may_be_fewer(kernel):
    assert_right(sparse(problem(200, heads=4, shared=2)), kernel)


def test_more_keys_than_queries(kernel):
    torch.manual_seed(1)
    assert_right(problem(70, sequence_k=200), kernel)


def test_keys_left_out_are_never_read(variable):
    """Memory poisoned with NaN where the map does not point, and around the tensors."""
    asked = problem(256, heads=2)
    map = asked.layout.dense()
    map[..., 1] = False
    expected = asked.with_map(map).by(variable)
    poisoned = [torch.full((1, 256 + 64, 2, 64), torch.nan) for _ in range(2)]
    for into, x in zip(poisoned, (asked.k, asked.v), strict=True):
        into[:, :256] = x
        into[:, 64:128] = torch.nan
    asked = dataclasses.replace(asked, k=poisoned[0][:, :256], v=poisoned[1][:, :256])
    torch.testing.assert_close(asked.with_map(map).by(variable), expected)


def test_gradients_are_those_of_masked_attention(variable):
    asked = problem(200, heads=2, dtype=torch.float64)
    map = torch.rand(1, 2, 4, 4) < 0.5
    map[..., 0] = True
    asked = asked.with_map(map)
    leaves = [x.requires_grad_() for x in (asked.q, asked.k, asked.v)]
    grads = torch.autograd.grad(asked.by(variable)[0].sin().sum(), leaves)
    expected = torch.autograd.grad(sdpa(asked, asked.layout.mask()).sin().sum(), leaves)
    torch.testing.assert_close(grads, expected)


FAULTS = {
    "the first key head for all": lambda k, v: (k[:, :, :1].expand_as(k), v),
    "values of the next head": lambda k, v: (k, v.roll(1, 2)),
    "keys one token off": lambda k, v: (k.roll(1, 1), v),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_stride_is_caught(kernel, fault):
    class Wrong:
        def attend(self, q, k, v, layout, scale):
            return kernel.attend(q, *FAULTS[fault](k, v), layout, scale)

    asked = sparse(problem(300, heads=4, batch=2))
    with pytest.raises(AssertionError, match="off by"):
        assert_right(asked, Wrong())


def test_a_run_of_keys_that_ends_early_is_caught(monkeypatch):
    asked = sparse(problem(300, heads=2))
    right = gathering.spans_of

    def short(layout):
        return [
            s._replace(keys=tuple((a, b - (b > a + 1)) for a, b in s.keys)) for s in right(layout)
        ]

    monkeypatch.setattr(gathering, "spans_of", short)
    with pytest.raises(AssertionError, match="off by"):
        assert_right(asked, Gather())


def test_sums_that_do_not_fade_are_caught(monkeypatch):
    """Where a later part of the keys has the higher score."""
    asked = problem(150, heads=1, factor=3.0)
    monkeypatch.setattr(products, "KEYS", 64)
    assert_right(asked, Gather(least=1))
    monkeypatch.setattr(torch.Tensor, "exp2_", lambda x: x.clamp_(min=-1).copy_(x.exp2()))
    with pytest.raises(AssertionError, match="off by"):
        assert_right(asked, Gather(least=1))


def test_large_work_in_float32_goes_to_onednn(monkeypatch):
    asked = sparse(problem(1100, heads=2))
    called = []
    monkeypatch.setattr(products, "product", lambda a, b: called.append(a) or a @ b.mT)
    Gather().attend(asked.q, asked.k, asked.v, asked.layout, asked.scale)
    assert bool(called) == torch.backends.mkldnn.is_available()
    called.clear()
    Gather().attend(*(x.double() for x in (asked.q, asked.k, asked.v)), asked.layout, asked.scale)
    assert not called


def test_a_mask_of_the_neighbouring_head_is_caught(monkeypatch):
    asked = sparse(problem(300, heads=2))
    dense = BlockLayout.dense
    monkeypatch.setattr(BlockLayout, "dense", lambda layout: dense(layout).roll(1, 1))
    out = Flex(compiled=False).attend(asked.q, asked.k, asked.v, asked.layout, asked.scale)[0]
    monkeypatch.undo()
    assert (out - asked.truth()[0]).abs().max() > 0.1


def several_maps():
    """Another map for each of four heads that share two of keys; block 1 is NaN, which none reads.

    One row is empty, one has the ragged last block alone.
    """
    asked = problem(200, heads=4, shared=2)
    map = torch.rand(1, 4, 4, 4) < 0.5
    map[..., 1] = False
    map[0, 2, 0] = False
    map[0, 3, 2] = torch.tensor([False, False, False, True])
    k, v = asked.k.clone(), asked.v.clone()
    k[:, 64:128] = torch.nan
    v[:, 64:128] = torch.nan
    return dataclasses.replace(asked, k=k, v=v).with_map(map)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_flex_is_compiled_for_the_same_output(device):
    """The lists are what compiled code walks. On the CPU it tells no log-sum, on a card it does."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.device(device):
        asked = several_maps()
    if device == "cuda":
        assert_right(asked, Flex())
        return
    call = torch.compile(torch.nn.attention.flex_attention.flex_attention, dynamic=False)
    q, k, v = (x.transpose(1, 2) for x in (asked.q, asked.k, asked.v))
    out = call(q, k, v, block_mask=asked.layout.to_flex(), enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(out, asked.truth()[0].float(), rtol=1e-4, atol=1e-5)
    assert "log-sum-exp" in Flex().why_not(asked.q, asked.layout)
