"""Quantised block-sparse attention after SageAttention 2 (arXiv 2411.10958), dense or sparse.

Keys lose their mean over the sequence, which softmax does not see; queries and keys become INT8
with a scale per block; values become FP8 (e4m3) with a scale per channel, or stay as they are.
Products with FP8 are added to a float32 sum tile by tile, since the matrix unit itself keeps fewer
digits. Queries are not smoothed; there is no gradient.
"""

import triton
import triton.language as tl

from .triton_attention import LN2, LOG2E, RUNTIME, _place, ended, tile

LARGEST = tl.constexpr(127.0)
FP8_LARGEST = tl.constexpr(448.0)


# `out` too, though it is aligned: wider stores go through memory on Hopper and later
UNALIGNED = ["mean", "out", "starts", "start_b", "start_h", "heads", "blocks", "seq"]


@triton.jit(do_not_specialize=UNALIGNED)
def quantise(
    x,
    mean,
    out,
    scales,
    starts,
    stride_b,
    stride_s,
    stride_h,
    start_b,
    start_h,
    heads,
    blocks,
    seq,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
):
    """out int8 (B, S, H, HEAD) and scales float32 (B, H, blocks): x - mean, a scale per block.

    `mean` is float32 (B, H, HEAD). Rounds halves away from zero. A NaN makes the scale NaN.
    """
    item = tl.program_id(0)
    b = item // (heads * blocks)
    h = item // blocks % heads
    edge = starts + b * start_b + h * start_h + item % blocks
    start = tl.load(edge)
    limit = tl.load(edge + 1) - start
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, DIM)
    kept = (rows < limit)[:, None] & (columns < HEAD)[None, :]
    at = (start + rows)[:, None].to(tl.int64)
    base = x + b.to(tl.int64) * stride_b + h * stride_h + columns[None, :]
    values = tl.load(base + at * stride_s, mask=kept, other=0.0).to(tl.float32)
    middle = tl.load(mean + (b * heads + h) * HEAD + columns, mask=columns < HEAD, other=0.0)
    values = tl.where(kept, values - middle[None, :], 0.0)
    broken = tl.max(tl.max((values != values).to(tl.int32), 1), 0)
    scale = tl.max(tl.max(tl.abs(values), 1), 0) / LARGEST
    scale = tl.where(broken > 0, float("nan"), scale)
    scaled = values / tl.where(scale > 0, scale, 1.0)
    rounded = (scaled + tl.where(scaled >= 0, 0.5, -0.5)).to(tl.int8)
    tl.store(scales + item, scale)
    line = out + (b.to(tl.int64) * seq * heads + h) * HEAD + columns[None, :]
    tl.store(line + at * (heads * HEAD), rounded, mask=kept)


@triton.jit
def _quantised_span(
    acc,
    total,
    top,
    q,
    q_scale,
    k,
    v,
    k_scale,
    b,
    h,
    col,
    starts,
    first,
    last,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    split_k,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    MASKED: tl.constexpr,
    FP8: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As the span of plain attention, from INT8 products; `q_scale` holds scale * log2(e) too."""
    offsets = tl.arange(0, TILE_N)
    count = (last - first) << split_k
    block = tl.load(col + first, mask=count > 0, other=0)
    for at in tl.range(0, count, num_stages=STAGES):
        start = tl.load(starts + block) + (at & ((1 << split_k) - 1)) * TILE_N
        limit = tl.load(starts + block + 1) - start
        factor = q_scale * tl.load(k_scale + block)
        block = tl.load(col + first + (tl.minimum(at + 1, count - 1) >> split_k))
        key = tile(
            k, b, h, start, limit, k_stride_b, k_stride_s, k_stride_h,
            TILE_N, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        scores = tl.dot(q, tl.trans(key)).to(tl.float32) * factor
        if MASKED:
            scores = tl.where(offsets[None, :] < limit, scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top) if MASKED else new_top
        weights = tl.math.exp2(scores - shift[:, None])
        fade = tl.math.exp2(top - shift)
        total = total * fade + tl.sum(weights, 1)
        value = tile(
            v, b, h, start, limit, v_stride_b, v_stride_s, v_stride_h,
            TILE_N, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        value = ended(value, limit, TILE_N, TMA, MASKED)
        acc = acc * fade[:, None]
        if FP8:
            acc += tl.dot((weights * FP8_LARGEST).to(value.dtype), value)
        else:
            acc = tl.dot(weights.to(value.dtype), value, acc, input_precision=PRECISION)
        top = new_top
    return acc, total, top


@triton.jit(do_not_specialize=[*RUNTIME, "q_scale", "k_scale", "v_scale"])
def quantised_forward(
    q,
    k,
    v,
    o,
    lse,
    q_scale,
    k_scale,
    v_scale,
    row_ptr,
    col,
    partial,
    order,
    q_start,
    k_start,
    q_stride_b,
    q_stride_s,
    q_stride_h,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    o_stride_b,
    o_stride_s,
    o_stride_h,
    q_start_b,
    q_start_h,
    k_start_b,
    k_start_h,
    heads,
    group,
    blocks_q,
    blocks_k,
    seq_q,
    scale,
    split_q,
    split_k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    FP8: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """o (B, S_q, H, HEAD) and lse (B, H, S_q), of smoothed keys; one program per tile of queries.

    Scales: q_scale (B, H, nQ), k_scale (B, H / group, nK), v_scale (B, H / group, HEAD) if FP8.
    """
    item = tl.program_id(0)
    row, b, h, start, limit, at, kept = _place(
        item, order, q_start, q_start_b, q_start_h, heads, blocks_q, split_q,
        TILE_M, DIM, HEAD,
    )  # fmt: skip
    first = tl.load(row_ptr + row)
    last = tl.load(row_ptr + row + 1)
    last = tl.where(limit > 0, last, first)
    middle = tl.minimum(first + tl.load(partial + row), last)
    columns = tl.arange(0, DIM)
    base = q + b.to(tl.int64) * q_stride_b + h * q_stride_h + columns[None, :]
    query = tl.load(base + at * q_stride_s, mask=kept, other=0)
    factor = tl.load(q_scale + row) * scale * LOG2E
    acc = tl.zeros([TILE_M, DIM], tl.float32)
    total = tl.zeros([TILE_M], tl.float32)
    top = tl.full([TILE_M], -float("inf"), tl.float32)
    keys = k_start + b * k_start_b + h * k_start_h
    shared = h // group
    of_keys = k_scale + (b * (heads // group) + shared) * blocks_k
    acc, total, top = _quantised_span(
        acc, total, top, query, factor, k, v, of_keys, b, shared, col, keys, first, middle,
        k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
        split_k, TILE_N, DIM, HEAD, TMA, True, FP8, PRECISION, STAGES,
    )  # fmt: skip
    acc, total, top = _quantised_span(
        acc, total, top, query, factor, k, v, of_keys, b, shared, col, keys, middle, last,
        k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
        split_k, TILE_N, DIM, HEAD, TMA, False, FP8, PRECISION, STAGES,
    )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)
    rows = tl.arange(0, TILE_M)
    line = lse + (b.to(tl.int64) * heads + h) * seq_q + start + rows
    tl.store(line, (top + tl.math.log2(total)) * LN2, mask=rows < limit)
    out = acc / total[:, None]
    if FP8:
        channel = v_scale + (b * (heads // group) + shared) * HEAD + columns
        by_channel = tl.load(channel, mask=columns < HEAD, other=0.0) / FP8_LARGEST
        out = out * by_channel[None, :]
    base = o + b.to(tl.int64) * o_stride_b + h * o_stride_h + columns[None, :]
    tl.store(base + at * o_stride_s, out.to(o.dtype.element_ty), mask=kept)
