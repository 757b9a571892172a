"""The Triton kernels, in the interpreter or on a card; run by test_triton.py in its own process."""

from dataclasses import replace

import pytest
import torch

from accel.sparse_attn.kernels import triton_attention, triton_backward, triton_launch
from accel.sparse_attn.kernels.block_sum import block_sum
from accel.sparse_attn.kernels.merge import merge_lse
from accel.sparse_attn.kernels.triton_launch import Triton
from accel.sparse_attn.layout import BlockLayout
from tests.sparse_attn.kernels.problems import (
    DEVICE,
    FINEST,
    SIZES,
    TYPES,
    amid_nan,
    assert_right,
    planted,
    problem,
    ragged,
)

KERNEL = Triton()
SHAPES = [(64, 64, 64), (129, 128, 64), (256, 96, 128), (129, 256, 128)]
if DEVICE != "cpu":  # too long for the interpreter
    SHAPES += [(1000, 64, 128), (1000, 40, 64), (4097, 128, 128), (4097, 256, 64)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.device(DEVICE):
        yield


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that nobody has written is NaN."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)

        def make(*args, plain=plain, **kwargs):
            found = plain(*args, **kwargs)
            return found.fill_(torch.nan) if found.is_floating_point() else found

        monkeypatch.setattr(torch, name, make)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tokens", "head", "block"), SHAPES)
def test_full_map_is_dense_attention(tokens, head, block, dtype):
    asked = problem(tokens, head, heads=2, shared=2, dtype=dtype, block=block)
    assert_right(asked, KERNEL)
    q, k, v = (x.transpose(1, 2).double() for x in (asked.q, asked.k, asked.v))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    difference = asked.by(KERNEL)[0] - dense.transpose(1, 2)
    assert difference.norm() < (1e-6 if dtype == torch.float32 else 5e-3) * dense.norm()


def sparse(dtype=FINEST, **settings):
    """A map of each head's own: an empty row, a row of one block, the ragged block in some."""
    map = torch.rand(2, 2, 3, 3) < 0.6
    map[0, 0, 1] = False
    map[0, 0, 0] = torch.tensor([False, True, False])
    map[0, 1, 0] = torch.tensor([False, False, True])
    map[1, 0] = ~map[1, 1]
    return problem(tokens=129, batch=2, dtype=dtype, map=map, **settings)


@pytest.mark.parametrize("dtype", TYPES)
def test_maps_of_each_head(dtype):
    assert_right(sparse(dtype), KERNEL)


def test_pointers_and_descriptors_agree(monkeypatch):
    asked = sparse(torch.float16)
    by_descriptors = asked.by(KERNEL)
    used = []
    monkeypatch.setattr(triton_launch, "by_descriptors", lambda q: used.append(q))
    by_pointers = asked.by(KERNEL)
    assert used
    assert all(map(torch.equal, by_descriptors, by_pointers))


@pytest.mark.parametrize("aligned", [True, False])
def test_blocks_of_any_size(aligned):
    starts = ragged(160, 64)
    map = torch.rand(1, 2, 6, 6) < 0.7
    asked = problem(160, map=map, starts=starts, dtype=torch.float16)
    if not aligned:
        asked = replace(asked, **{n: embedded(getattr(asked, n), 1) for n in "qkv"})
    assert_right(asked, KERNEL)


def test_tokens_left_out_are_never_read():
    """Forward and backward, with NaN right after blocks that end early."""
    clean, poisoned = amid_nan(problem(160, starts=SIZES, shared=2, dtype=FINEST))
    assert_right(clean, KERNEL)
    assert all(map(torch.equal, poisoned.by(KERNEL), clean.by(KERNEL)))
    wanted = gradients(clean, lambda a: a.by(KERNEL))
    found = gradients(poisoned, lambda a: a.by(KERNEL), unread=120)
    assert all(map(torch.equal, found, wanted))


def embedded(x, margin):
    """The same values as a view into memory that is otherwise NaN."""
    batch, tokens, heads, head = x.shape
    wide = torch.full((batch, heads + 1, tokens + 2, head + 16), torch.nan, dtype=x.dtype)
    view = wide[:, 1:, 1:-1, margin : margin + head].transpose(1, 2)
    view.copy_(x)
    return view


@pytest.mark.parametrize("margin", [16, 3])
def test_strided_inputs_amid_nan(margin):
    """Heads before tokens, not contiguous, aligned for descriptors or not."""
    asked = sparse(torch.float16)
    strided = replace(asked, **{n: embedded(getattr(asked, n), margin) for n in "qkv"})
    assert not strided.k.is_contiguous()
    assert (triton_launch.fitting(strided.k) is strided.k) == (margin == 16)
    assert all(map(torch.equal, strided.by(KERNEL), asked.by(KERNEL)))


def test_keys_in_two_parts_merge_to_the_whole():
    asked = sparse(heads=2)
    first = asked.layout.dense().clone()
    second = first.clone()
    first[..., 1::2] = False
    second[..., 0::2] = False
    parts = (*asked.with_map(first).by(KERNEL), *asked.with_map(second).by(KERNEL))
    out, lse = asked.by(KERNEL)
    for merge in (merge_lse, triton_launch.merge_lse):
        merged, merged_lse = merge(*parts)
        assert torch.allclose(merged, out, rtol=1e-5, atol=8 * torch.finfo(out.dtype).eps)
        assert torch.allclose(merged_lse, lse, atol=1e-5)


def permuted(asked):
    """The problem of six blocks with these, and the tokens in them, in another order; that order.

    Starts must be those of `ragged(160, 64)`.
    """
    starts = asked.layout.q_start
    blocks = torch.tensor([3, 0, 5, 2, 1, 4])
    edges = starts[0, 0].tolist()
    tokens = torch.cat([(torch.randperm(edges[i + 1] - edges[i]) + edges[i]) for i in blocks])
    sizes = starts[0, 0].diff()[blocks]
    moved = torch.tensor([0, *sizes.cumsum(0)], dtype=torch.int32)
    map = asked.layout.dense()[:, :, blocks][..., blocks]
    layout = BlockLayout.from_map(map, moved, moved, 64, 64, seq_q=160, seq_k=160)
    return type(asked)(asked.q[:, tokens], asked.k[:, tokens], asked.v[:, tokens], layout), tokens


def test_order_of_blocks_and_of_tokens_in_them_does_not_matter():
    starts = ragged(160, 64)
    asked = problem(160, map=torch.rand(1, 2, 6, 6) < 0.7, starts=starts, dtype=FINEST)
    other, tokens = permuted(asked)
    (out, lse), (there, lse_there) = asked.by(KERNEL), other.by(KERNEL)
    assert torch.allclose(there, out[:, tokens], rtol=1e-5, atol=8 * torch.finfo(out.dtype).eps)
    assert torch.allclose(lse_there, lse[..., tokens], atol=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
def test_large_logits(dtype):
    asked = problem(tokens=129, dtype=dtype, factor=50)
    assert_right(asked, KERNEL)


def test_two_runs_are_equal_bit_by_bit():
    asked = sparse(torch.float16)
    assert all(map(torch.equal, asked.by(KERNEL), asked.by(KERNEL)))


def gradients(asked, call, unread=None):
    """Of a random function of output and log-sum, by q, k and v.

    The slope of outputs from token `unread` on, which attend to nothing, is NaN.
    """
    torch.manual_seed(1)
    leaves = [x.detach().clone().requires_grad_() for x in (asked.q, asked.k, asked.v)]
    out, lse = call(replace(asked, q=leaves[0], k=leaves[1], v=leaves[2]))
    of_out, of_lse = torch.randn(out.shape).to(out.dtype), torch.randn(lse.shape).to(lse.dtype)
    if unread is not None:
        of_out[:, unread:] = torch.nan
    lse = lse.masked_fill(lse == -torch.inf, 0)
    return torch.autograd.grad((out, lse), leaves, (of_out, of_lse))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", ["maps", "sizes"])
def test_gradients(case, dtype):
    if case == "maps":
        asked = sparse(dtype, shared=2)
    else:
        map = torch.rand(1, 2, 6, 6) < 0.7
        asked = problem(160, map=map, starts=ragged(160, 64), dtype=dtype, head=96)
    found = gradients(asked, lambda a: a.by(KERNEL))
    exact = replace(asked, **{n: getattr(asked, n).double() for n in "qkv"})
    true = gradients(exact, lambda a: a.truth())
    allowed = {torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float32: 2e-6}[dtype]
    for got, want in zip(found, true, strict=True):
        assert got.dtype == dtype
        assert (got - want).norm() <= allowed * want.norm()


def summed(starts=None):
    """A problem of block sums, and the log-sums of its rows: one row attends to nothing."""
    asked = problem(160, head=96, shared=2, starts=starts, block=64, dtype=FINEST)
    lse = asked.truth()[1].float()
    lse[0, 0, 3] = -torch.inf
    return asked, lse


def assert_sums_right(asked, lse):
    layout = asked.layout
    arguments = (lse, layout.q_start, layout.k_start, asked.scale)
    found = triton_launch.block_sum(asked.q, asked.k, *arguments)
    exact = block_sum(asked.q.double(), asked.k.double(), *arguments)
    assert torch.allclose(found.double(), exact, atol=1e-3)
    rows = layout.q_start.diff().float()[0, 0]
    assert torch.allclose(found.sum(-1)[0, 1], rows, atol=1e-3)


@pytest.mark.parametrize("starts", [None, ragged(160, 64)], ids=["uniform", "ragged"])
def test_block_sums(starts):
    assert_sums_right(*summed(starts))


def test_block_sums_amid_nan():
    asked, lse = summed()
    wide = replace(asked, k=embedded(asked.k, 16), q=embedded(asked.q, 16))
    assert_sums_right(wide, lse)


SUM_FAULTS = {
    "keys of another head": ("k, b, h // group, first", "k, b, 0 * h, first"),
    "keys past the end": (
        "weights = tl.where(offsets[None, :] < end",
        "tl.where(rows[:, None] < 0",
    ),
    "rows without keys": ("whole = tl.where(whole == -float", "tl.where(whole == -float"),
}


@pytest.mark.parametrize("fault", SUM_FAULTS)
def test_planted_faults_of_block_sums_are_found(fault, tmp_path, monkeypatch):
    asked, lse = summed(ragged(160, 64))
    if fault == "keys of another head":
        asked = replace(problem(160, starts=ragged(160, 64), dtype=FINEST))
        lse = asked.truth()[1].float()
    assert_sums_right(asked, lse)
    faulty = planted(tmp_path, triton_attention, *SUM_FAULTS[fault])
    monkeypatch.setattr(triton_attention, "block_sums", faulty.block_sums)
    with pytest.raises(AssertionError):
        assert_sums_right(asked, lse)


def assert_merged():
    """Parts of two keys each of (2, 70, 3, 40), some empty in one part or in both."""
    o1, o2 = (torch.randn(2, 70, 3, 40).to(FINEST) for _ in range(2))
    l1, l2 = (torch.randn(2, 3, 70) * 3 for _ in range(2))
    l1[0, 1, :20] = -torch.inf
    l2[0, 1, 10:30] = -torch.inf
    o1[l1.transpose(1, 2) == -torch.inf] = 0
    o2[l2.transpose(1, 2) == -torch.inf] = 0
    wanted, wanted_lse = merge_lse(o1.double(), l1.double(), o2.double(), l2.double())
    found, lse = triton_launch.merge_lse(o1, l1, o2, l2)
    assert found.dtype == FINEST
    assert torch.allclose(found.double(), wanted, atol=4 * torch.finfo(FINEST).eps)
    assert torch.allclose(lse.double(), wanted_lse, atol=1e-5)


MERGE_FAULTS = {
    "the first weight for both": ("right * (second / total)", "right * (first / total)"),
    "log-sums of other rows": (
        "at = (b * heads + row % heads) * seq + row // heads % seq",
        "at = row",
    ),
    "rows without keys": ("tl.where(some, shift + ", "tl.where(total > -1, shift + "),
}


def test_merging():
    assert_merged()


@pytest.mark.parametrize("fault", MERGE_FAULTS)
def test_planted_faults_of_merging_are_found(fault, tmp_path, monkeypatch):
    faulty = planted(tmp_path, triton_attention, *MERGE_FAULTS[fault])
    monkeypatch.setattr(triton_attention, "merge_outputs", faulty.merge_outputs)
    with pytest.raises(AssertionError):
        assert_merged()


FAULTS = {
    "keys past the end of a block": ("offsets[None, :] < limit", "offsets[None, :] <= limit"),
    "keys of another head": ("v, b, h // group, col", "v, b, 0, col"),
    "sums not faded": ("total = total * fade +", "total = total +"),
    "full blocks left out": ("keys, middle, last,", "keys, middle, tl.minimum(last, middle + 1),"),
    "log-sum in powers of two": ("tl.math.log2(total)) * LN2", "tl.math.log2(total))"),
    "starts of another head": ("keys = k_start + b * k_start_b + h", "keys = k_start + 0 * h"),
    "next block read late": ("(tl.minimum(at + 1, count", "(tl.minimum(at, count"),
}
BACKWARD_FAULTS = {
    "the next query block's log-sums": ("gradient_keys", "lse + start + offsets", "lse + offsets"),
    "delta forgotten": ("gradient_keys", "(by_weight - shift[None, :])", "by_weight"),
    "scale forgotten": ("gradient_queries", "(acc * scale)", "acc"),
    "full blocks left out": ("gradient_queries", "keys, middle, last,", "keys, last, last,"),
}
READ_FAULTS = {  # found amid NaN alone
    "scores past the end": (
        triton_backward,
        "gradient_queries",
        "by_score = tl.where(",
        "tl.where(",
    ),
    "keys past the end": (triton_backward, "gradient_queries", "key = ended(", "ended("),
    "queries past the end": (triton_backward, "gradient_keys", "query = ended(", "ended("),
    "slopes past the end": (triton_backward, "gradient_keys", "slope = ended(", "ended("),
    "values past the end": (triton_attention, "attention_forward", "value = ended(", "ended("),
}
if not triton_launch.by_descriptors(torch.empty(0, device=DEVICE)):
    READ_FAULTS = {}  # pointers stop where a block ends


def per_head():
    """Blocks of each head's own, partial and full, several of each in a row."""
    starts = torch.tensor([[0, 64, 128, 150, 160], [0, 40, 104, 130, 160]], dtype=torch.int32)
    map = torch.rand(1, 2, 4, 4) < 0.8
    map[0, :, 0] = torch.tensor([False, True, True, True])
    map[0, :, 1] = torch.tensor([True, True, True, False])
    return problem(160, map=map, starts=starts[None], dtype=FINEST)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, tmp_path, monkeypatch):
    asked = per_head()
    assert_right(asked, KERNEL)
    old, new = FAULTS[fault]
    faulty = planted(tmp_path, triton_attention, old, new)
    monkeypatch.setattr(triton_attention, "attention_forward", faulty.attention_forward)
    with pytest.raises(AssertionError):
        assert_right(asked, KERNEL)


@pytest.mark.parametrize("fault", BACKWARD_FAULTS)
def test_planted_faults_of_gradients_are_found(fault, tmp_path, monkeypatch):
    name, old, new = BACKWARD_FAULTS[fault]
    faulty = planted(tmp_path, triton_backward, old, new)
    monkeypatch.setattr(triton_backward, name, getattr(faulty, name))
    asked = per_head()
    found = gradients(asked, lambda a: a.by(KERNEL))
    exact = replace(asked, **{n: getattr(asked, n).double() for n in "qkv"})
    true = gradients(exact, lambda a: a.truth())
    off = [float((g - t).norm() / t.norm()) for g, t in zip(found, true, strict=True)]
    assert not max(off) < 5e-3


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_planted_reading_of_tokens_left_out_is_found(fault, tmp_path, monkeypatch):
    module, name, old, new = READ_FAULTS[fault]
    faulty = planted(tmp_path, module, old, new)
    monkeypatch.setattr(module, name, getattr(faulty, name))
    poisoned = amid_nan(problem(160, starts=SIZES, shared=2, dtype=FINEST))[1]
    if module is triton_attention:
        with pytest.raises(AssertionError):
            assert_right(poisoned, KERNEL)
    else:
        found = gradients(poisoned, lambda a: a.by(KERNEL), unread=120)
        assert any(x.isnan().any() for x in found)
