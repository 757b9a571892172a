"""Triton kernels of the gradients of block-sparse attention; launched by `triton_launch`.

Scores are made anew from q, k and the saved log-sum: p = exp(scale q k - lse), ds = p (dp - delta).
Neither q nor k is scaled beforehand, which would perturb logits in proportion to themselves.
"""

import triton
import triton.language as tl

from .triton_attention import LOG2E, RUNTIME, ended, tile


@triton.jit
def _queries_span(
    acc,
    query,
    slope,
    whole,
    shift,
    k,
    v,
    b,
    h,
    col,
    keys,
    first,
    last,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    scale,
    split_k,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Adds ds k of entries `first` to `last` of a row, a tile of TILE_N keys at a time."""
    offsets = tl.arange(0, TILE_N)
    count = (last - first) << split_k
    block = tl.load(col + first, mask=count > 0, other=0)
    for turn in tl.range(0, count, num_stages=STAGES):
        start = tl.load(keys + block) + (turn & ((1 << split_k) - 1)) * TILE_N
        end = tl.load(keys + block + 1) - start
        block = tl.load(col + first + (tl.minimum(turn + 1, count - 1) >> split_k))
        key = tile(
            k, b, h, start, end, k_stride_b, k_stride_s, k_stride_h,
            TILE_N, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        value = tile(
            v, b, h, start, end, v_stride_b, v_stride_s, v_stride_h,
            TILE_N, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        weights = tl.math.exp2(scores * (scale * LOG2E) - whole[:, None])
        by_weight = tl.dot(slope, tl.trans(value), input_precision=PRECISION)
        by_score = weights * (by_weight - shift[:, None])
        if MASKED:
            by_score = tl.where(offsets[None, :] < end, by_score, 0.0)
        key = ended(key, end, TILE_N, TMA, MASKED)
        acc = tl.dot(by_score.to(key.dtype), key, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=[*RUNTIME, "delta", "blocks"])
def gradient_queries(
    q,
    k,
    v,
    do,
    lse,
    delta,
    dq,
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
    do_stride_b,
    do_stride_s,
    do_stride_h,
    q_start_b,
    q_start_h,
    k_start_b,
    k_start_h,
    heads,
    group,
    blocks,
    seq_q,
    scale,
    split_q,
    split_k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dq, contiguous (B, S_q, H, HEAD), of one tile of queries: the sum of ds k over its keys."""
    item = tl.program_id(0)
    row = tl.load(order + (item >> split_q))
    b = row // (heads * blocks)
    h = row // blocks % heads
    rows = tl.arange(0, TILE_M)
    columns = tl.arange(0, DIM)
    starts = q_start + b * q_start_b + h * q_start_h + row % blocks
    start = tl.load(starts) + (item & ((1 << split_q) - 1)) * TILE_M
    limit = tl.load(starts + 1) - start
    first = tl.load(row_ptr + row)
    last = tl.where(limit > 0, tl.load(row_ptr + row + 1), first)
    middle = tl.minimum(first + tl.load(partial + row), last)
    inside = rows < limit
    kept = inside[:, None] & (columns[None, :] < HEAD)
    at = (start + rows)[:, None].to(tl.int64)
    base = q + b.to(tl.int64) * q_stride_b + h * q_stride_h + columns[None, :]
    query = tl.load(base + at * q_stride_s, mask=kept, other=0.0)
    base = do + b.to(tl.int64) * do_stride_b + h * do_stride_h + columns[None, :]
    slope = tl.load(base + at * do_stride_s, mask=kept, other=0.0)
    line = (b.to(tl.int64) * heads + h) * seq_q + start + rows
    whole = tl.load(lse + line, mask=inside, other=float("inf")) * LOG2E
    shift = tl.load(delta + line, mask=inside, other=0.0)
    acc = tl.zeros([TILE_M, DIM], tl.float32)
    keys = k_start + b * k_start_b + h * k_start_h
    acc = _queries_span(
        acc, query, slope, whole, shift, k, v, b, h // group, col, keys, first, middle,
        k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
        scale, split_k, TILE_N, DIM, HEAD, TMA, True, PRECISION, STAGES,
    )  # fmt: skip
    acc = _queries_span(
        acc, query, slope, whole, shift, k, v, b, h // group, col, keys, middle, last,
        k_stride_b, k_stride_s, k_stride_h, v_stride_b, v_stride_s, v_stride_h,
        scale, split_k, TILE_N, DIM, HEAD, TMA, False, PRECISION, STAGES,
    )  # fmt: skip
    out = dq + ((b.to(tl.int64) * seq_q + at) * heads + h) * HEAD + columns[None, :]
    tl.store(out, (acc * scale).to(dq.dtype.element_ty), mask=kept)


@triton.jit
def _keys_span(
    by_key,
    by_value,
    key,
    value,
    q,
    do,
    lse,
    delta,
    b,
    h,
    col,
    queries,
    first,
    last,
    q_stride_b,
    q_stride_s,
    q_stride_h,
    do_stride_b,
    do_stride_s,
    do_stride_h,
    scale,
    split_q,
    TILE_M: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Adds what entries `first` to `last` of a row give, a tile of TILE_M queries at a time.

    `lse` and `delta` are those of the head.
    """
    offsets = tl.arange(0, TILE_M)
    count = (last - first) << split_q
    block = tl.load(col + first, mask=count > 0, other=0)
    for turn in tl.range(0, count, num_stages=STAGES):
        start = tl.load(queries + block) + (turn & ((1 << split_q) - 1)) * TILE_M
        end = tl.load(queries + block + 1) - start
        block = tl.load(col + first + (tl.minimum(turn + 1, count - 1) >> split_q))
        query = tile(
            q, b, h, start, end, q_stride_b, q_stride_s, q_stride_h,
            TILE_M, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        slope = tile(
            do, b, h, start, end, do_stride_b, do_stride_s, do_stride_h,
            TILE_M, DIM, HEAD, TMA, MASKED,
        )  # fmt: skip
        query = ended(query, end, TILE_M, TMA, MASKED)
        slope = ended(slope, end, TILE_M, TMA, MASKED)
        if MASKED:
            inside = offsets < end
            whole = tl.load(lse + start + offsets, mask=inside, other=float("inf"))
            shift = tl.load(delta + start + offsets, mask=inside, other=0.0)
        else:
            whole = tl.load(lse + start + offsets)
            shift = tl.load(delta + start + offsets)
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        # 0 past the end of the block, where the log-sum is infinite
        weights = tl.math.exp2(scores * (scale * LOG2E) - (whole * LOG2E)[None, :])
        by_value = tl.dot(weights.to(slope.dtype), slope, by_value, input_precision=PRECISION)
        by_weight = tl.dot(value, tl.trans(slope), input_precision=PRECISION)
        by_score = weights * (by_weight - shift[None, :])
        by_key = tl.dot(by_score.to(query.dtype), query, by_key, input_precision=PRECISION)
    return by_key, by_value


@triton.jit(do_not_specialize=[*RUNTIME, "delta", "blocks"])
def gradient_keys(
    q,
    k,
    v,
    do,
    lse,
    delta,
    dk,
    dv,
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
    do_stride_b,
    do_stride_s,
    do_stride_h,
    q_start_b,
    q_start_h,
    k_start_b,
    k_start_h,
    heads,
    group,
    blocks,
    seq_q,
    seq_k,
    scale,
    split_q,
    split_k,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dk and dv, contiguous (B, S_k, H, HEAD), of one tile of keys, by inverted lists.

    `row_ptr` and `col` list the query blocks of every key block; one part per query head, which
    the caller sums where heads share keys.
    """
    item = tl.program_id(0)
    row = tl.load(order + (item >> split_k))
    b = row // (heads * blocks)
    h = row // blocks % heads
    rows = tl.arange(0, TILE_N)
    columns = tl.arange(0, DIM)
    starts = k_start + b * k_start_b + h * k_start_h + row % blocks
    start = tl.load(starts) + (item & ((1 << split_k) - 1)) * TILE_N
    limit = tl.load(starts + 1) - start
    first = tl.load(row_ptr + row)
    last = tl.where(limit > 0, tl.load(row_ptr + row + 1), first)
    middle = tl.minimum(first + tl.load(partial + row), last)
    kept = (rows < limit)[:, None] & (columns[None, :] < HEAD)
    at = (start + rows)[:, None].to(tl.int64)
    base = k + b.to(tl.int64) * k_stride_b + h // group * k_stride_h + columns[None, :]
    key = tl.load(base + at * k_stride_s, mask=kept, other=0.0)
    base = v + b.to(tl.int64) * v_stride_b + h // group * v_stride_h + columns[None, :]
    value = tl.load(base + at * v_stride_s, mask=kept, other=0.0)
    by_key = tl.zeros([TILE_N, DIM], tl.float32)
    by_value = tl.zeros([TILE_N, DIM], tl.float32)
    queries = q_start + b * q_start_b + h * q_start_h
    line = (b.to(tl.int64) * heads + h) * seq_q
    by_key, by_value = _keys_span(
        by_key, by_value, key, value, q, do, lse + line, delta + line, b, h, col, queries, first,
        middle, q_stride_b, q_stride_s, q_stride_h, do_stride_b, do_stride_s, do_stride_h,
        scale, split_q, TILE_M, DIM, HEAD, TMA, True, PRECISION, STAGES,
    )  # fmt: skip
    by_key, by_value = _keys_span(
        by_key, by_value, key, value, q, do, lse + line, delta + line, b, h, col, queries, middle,
        last, q_stride_b, q_stride_s, q_stride_h, do_stride_b, do_stride_s, do_stride_h,
        scale, split_q, TILE_M, DIM, HEAD, TMA, False, PRECISION, STAGES,
    )  # fmt: skip
    out = ((b.to(tl.int64) * seq_k + at) * heads + h) * HEAD + columns[None, :]
    tl.store(dk + out, (by_key * scale).to(dk.dtype.element_ty), mask=kept)
    tl.store(dv + out, by_value.to(dv.dtype.element_ty), mask=kept)
